"""Whether tasks, tokenizer and model fit, asked before any weights load: a rehearsal with a model that knows nothing.

lm-eval's own harness runs on the first items of each task, with this tokenizer and logits that are all zero; then
the answers of every item are measured. What would end an evaluation after an hour ends it here in seconds: a missing
metric package, a token that the task needs and the tokenizer lacks, an answer longer than the model's context.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from core.errors import DataError, PruningError
from core.names import DEFAULT_TASK
from evaluation.catalogue import load
from evaluation.harness import answer_lengths, run_tasks
from evaluation.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REHEARSED_ITEMS = 2


def check_fit(
    names: list[str], task_path: str | Path | None, tokenizer: "PreTrainedTokenizerBase", config: Any
) -> None:
    """Run the tasks' first items on an empty model. names: none stands for the task that needs no network.

    config: of the real model. Raises DataError, one line, for what would keep the tasks from being run with this
    tokenizer and model.
    """
    names = names or [DEFAULT_TASK]
    listed = ", ".join(names)
    try:
        run_tasks(
            EmptyModel(config), tokenizer, names, task_path, batch_size=1, seed=0, limit=REHEARSED_ITEMS, bars=False
        )
        with quiet(bars=False):
            _check_answers(load(names, task_path)["tasks"], tokenizer, config)
    except PruningError:
        raise
    except ImportError as error:
        raise DataError(
            f"{listed} cannot be scored: the package {error.name or error} is missing; install it, or choose other "
            "--eval_tasks"
        ) from error
    except Exception as error:  # a task is a program of its author's
        first = next(iter(str(error).strip().splitlines()), "")
        raise DataError(
            f"{listed} cannot be run with this model's tokenizer ({type(error).__name__}: {first[:200]}); choose other "
            "--eval_tasks"
        ) from error


class EmptyModel(torch.nn.Module):
    """Logits of zero for every token, and one token more for every text; what lm-eval asks of a model, no more."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        largest = int(input_ids.max())
        if largest >= self.config.vocab_size:
            raise ValueError(f"token id {largest} is beyond the model's vocabulary of {self.config.vocab_size}")
        from transformers import DynamicCache

        logits = torch.zeros(1, 1, 1).expand(*input_ids.shape, self.config.vocab_size)
        return SimpleNamespace(logits=logits, past_key_values=DynamicCache())

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([input_ids, input_ids[:, -1:]], dim=1)

    def tie_weights(self) -> None:
        """There are none."""


def _check_answers(tasks: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", config: Any) -> None:
    context = int(getattr(config, "max_position_embeddings", 2048))
    for name, task in tasks.items():
        for answer, length in answer_lengths(task, tokenizer):
            if not 0 < length <= context:
                what = f"is {length} tokens long" if length else "has no token"
                raise DataError(
                    f"{name} cannot be scored: the answer {answer[:40]!r} {what}, and the model's context is "
                    f"{context} tokens; choose other --eval_tasks"
                )
