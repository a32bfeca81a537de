"""What a pruned model must compute: the dense model's outputs, the removed groups silenced by hooks.

Surgery consumes the dense model, so this runs before it. Nothing of surgery, saving or loading takes part.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from core.engine import engine_of
from core.errors import NumericalError
from core.families import Family
from core.groups import LayerShape
from core.plan import PruningPlan
from core.silence import silenced
from core.windows import TokenWindows
from models.architecture import architecture_of, decoder_layers

NUM_WINDOWS, SEQ_LEN, PROMPTS, NEW_TOKENS = 4, 64, 2, 8
SHIFT = 17  # positions
FEW_TOKENS = 2  # of a model whose weights are read again for each

LeaveOut = Callable[[Any, Family, LayerShape, int, np.ndarray], AbstractContextManager[None]]
Blocks = dict[tuple[int, int], torch.Tensor]  # (layer after pruning, kind) -> its output at each window's last token


@dataclass(frozen=True)
class Reference:
    """What the dense model without the removed groups computes; tensors float32 on the CPU.

    windows: int64 (n, T). logits: (n, T, V). continuation: int64 (m, new tokens), greedy after the first half of the
    first m windows; step_logits: (m, new tokens, V), the logits each was chosen from. blocks: see ``Blocks``.
    layers: widths that the plan leaves, one LayerShape a remaining layer. rounding: relative error of its own logits
    where all positions are SHIFT further on, which rotary embeddings take for the same; 0 where that could not be told.
    """

    windows: np.ndarray
    logits: torch.Tensor
    continuation: torch.Tensor
    step_logits: torch.Tensor
    blocks: Blocks
    layers: tuple[LayerShape, ...]
    rounding: float = 0.0

    @property
    def prompts(self) -> torch.Tensor:
        return _prompts(torch.from_numpy(self.windows))


def verification_windows(windows: TokenWindows | None, vocab_size: int, context: int, seed: int = 0) -> np.ndarray:
    """int64 (n, T): the head of a run's windows, or random ids where it read no text; T leaves room for new tokens."""
    length = max(2, min(SEQ_LEN, context - NEW_TOKENS))
    if windows is not None:
        return np.ascontiguousarray(windows.ids[:NUM_WINDOWS, :length])
    return np.random.default_rng(seed).integers(0, vocab_size, (NUM_WINDOWS, length), dtype=np.int64)


@torch.no_grad()
def reference(model: Any, family: Family, plan: PruningPlan, windows: np.ndarray) -> Reference:
    """Run the dense model as if ``plan`` had been carried out; it is left as found.

    Raises NumericalError when its logits are not finite: nothing could be compared with them.
    """
    layers = decoder_layers(model, family)
    with without_removed_groups(layers, family, plan):
        remaining = [layers[index] for index in plan.remaining_layers]
        return _recorded(model, family, windows, remaining, plan.pruned_architecture.layers)


@torch.no_grad()
def reference_of(model: Any, family: Family, windows: np.ndarray) -> Reference:
    """The same of a narrow model as it is now: cut, and trained since or not. Raises NumericalError."""
    shapes = architecture_of(model, family).layers
    return _recorded(model, family, windows, decoder_layers(model, family), shapes)


def _recorded(
    model: Any,
    family: Family,
    windows: np.ndarray,
    layers: list[Any],
    shapes: tuple[LayerShape, ...],
) -> Reference:
    engine = engine_of(model)
    ids, new_tokens = torch.from_numpy(windows).to(engine.device), FEW_TOKENS if engine.streams else NEW_TOKENS
    with recorded_blocks(layers, family) as blocks:
        logits = logits_of(model, ids)
    continuation, step_logits = _greedy_without_cache(model, _prompts(ids), new_tokens)
    if not bool(logits.isfinite().all()):
        raise NumericalError(
            "the model without the removed groups yields NaN or Inf, so the saved model cannot be compared with it; "
            "try --dtype float32 or a smaller --pruning_ratio"
        )
    return Reference(windows, logits, continuation, step_logits, blocks, shapes, _rounding(model, ids, logits))


def _rounding(model: Any, ids: torch.Tensor, logits: torch.Tensor) -> float:
    """A mask takes no part, so a model that does not heed masks is not excused for it."""
    positions = torch.arange(SHIFT, SHIFT + ids.shape[1], device=ids.device)[None]
    try:
        error = relative_error(logits_of(model, ids, position_ids=positions), logits)
    except Exception:  # of a model's own code, or for want of memory: the folder is proved all the same
        return 0.0
    return error if math.isfinite(error) else 0.0


@contextmanager
def without_removed_groups(
    layers: list[Any], family: Family, plan: PruningPlan, leave_out: LeaveOut = silenced
) -> Iterator[None]:
    """Inside, the inputs of o_proj and down_proj that belong to removed groups are 0, whatever they would be.

    leave_out: ``core.narrowed.left_out`` gives the same in less time, up to rounding, for whom it is not a proof.
    """
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            if index in plan.removed_layers:
                for path in (family.attention_output, family.mlp_output):
                    hook = layer.get_submodule(path).register_forward_hook(_silence)
                    stack.callback(hook.remove)
                continue
            shape = plan.architecture.layers[index]
            for block in shape.blocks:
                keep = plan.keep[plan.groups.rows(index, block.kind)]
                stack.enter_context(leave_out(layer, family, shape, block.kind, keep))
        yield


def _silence(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(output)  # the bias goes too; the norms that follow map 0 to 0


@contextmanager
def recorded_blocks(layers: list[Any], family: Family) -> Iterator[Blocks]:
    """Every block's output at the last token of each window, as the last forward inside leaves it."""
    blocks: Blocks = {}

    def record(key: tuple[int, int], _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        blocks[key] = output[:, -1].float().cpu()

    hooks = []
    try:
        for index, layer in enumerate(layers):
            for kind, path in enumerate((family.attention_output, family.mlp_output)):
                module = layer.get_submodule(path)
                hooks.append(module.register_forward_hook(partial(record, (index, kind))))
        yield blocks
    finally:
        for hook in hooks:
            hook.remove()


def logits_of(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False, **inputs).logits.float().cpu()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖₂ / ‖expected‖₂ in float64; NaN or Inf where either holds one."""
    difference, scale = (actual.double() - expected.double()).norm(), expected.double().norm()
    return float(difference / scale) if scale else float(difference)


def _prompts(ids: torch.Tensor) -> torch.Tensor:
    return ids[:PROMPTS, : max(1, ids.shape[1] // 2)]


def _greedy_without_cache(model: Any, ids: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens (m, new tokens), logits (m, new tokens, V)): every step reads the whole sequence again."""
    prompt, steps = ids.shape[1], []
    for _ in range(new_tokens):
        steps.append(logits_of(model, ids)[:, -1])
        ids = torch.cat([ids, steps[-1].argmax(-1, keepdim=True).to(ids.device)], dim=1)
    return ids[:, prompt:].cpu(), torch.stack(steps, dim=1)
