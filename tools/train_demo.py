"""Train a small model on the calibration split of ``pydoc``: the embedded one, or one that the benchmarks prune.

    python -m tools.train_demo --minutes 60 --work /tmp/demo_training --output models/demo
    python -m tools.train_demo --shape qwen2 --minutes 30 --work /tmp/qwen2_training --output benchmarks/models/qwen2

The time box is the schedule: the learning rate follows the fraction of ``--minutes`` that has passed, so the cosine
always completes, however fast the machine. The training state is kept in ``--work``; the same command run again
after an interruption continues from there. Two shared CPU cores are held up by page faults and by threads waiting
for one another: set OMP_NUM_THREADS to the cores that are free and preload jemalloc (models/demo/README.md).
"""

import argparse
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from calibration.pydoc import pydoc_corpus
from core.files import write_atomically
from tools.demo_recipe import CONTEXT, SHAPES, model_config, train_tokenizer

LOOK_TOKENS = 32_768  # of held-out text, for the figures shown on the way
SHORT_WINDOW, SHORT_UNTIL = 256, 0.8  # windows of half the context until then: attention costs less
PEAK_RATE, FINAL_FRACTION, WARMUP = 2e-3, 0.02, 0.03
WEIGHT_DECAY, DROPOUT, BETAS, CLIP = 0.3, 0.1, (0.9, 0.95), 1.0  # the text is read some eleven times


def token_stream(tokenizer: PreTrainedTokenizerFast, documents: tuple[str, ...]) -> np.ndarray:
    """int64 (tokens,): the documents one after another, EOS after each, no BOS."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(documents), add_special_tokens=False)
    return np.concatenate([np.array([*item.ids, tokenizer.eos_token_id], dtype=np.int64) for item in encoded])


@dataclass(frozen=True)
class Batches:
    """Windows of BOS and T-1 consecutive tokens; each pass shifts the grid and shuffles it. A function of step."""

    stream: np.ndarray
    bos: int
    size: int
    seq_len: int
    seed: int

    @property
    def steps_per_pass(self) -> int:
        return (len(self.stream) // (self.seq_len - 1) - 1) // self.size

    def __call__(self, step: int) -> torch.Tensor:
        """int64 (B, T)."""
        text_len = self.seq_len - 1
        number, position = divmod(step, self.steps_per_pass)
        rng = np.random.default_rng([self.seed, number])
        first = rng.integers(text_len)
        chosen = rng.permutation(self.steps_per_pass * self.size)[position * self.size :][: self.size]
        index = first + chosen[:, None] * text_len + np.arange(text_len)
        return torch.from_numpy(np.insert(self.stream[index], 0, self.bos, axis=1))


def learning_rate(progress: float) -> float:
    """Linear warm-up, then cosine to FINAL_FRACTION of the peak; progress in [0, 1]."""
    if progress < WARMUP:
        return PEAK_RATE * max(progress / WARMUP, 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
    return PEAK_RATE * (FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine)


def add_dropout(model: PreTrainedModel) -> None:
    """Drop what each block adds to the residual stream, in training mode only (these families have no such option)."""
    for layer in model.model.layers:
        normed = hasattr(layer, "post_feedforward_layernorm")  # Gemma's blocks add their output through a norm
        last = (
            (layer.post_attention_layernorm, layer.post_feedforward_layernorm)
            if normed
            else (layer.self_attn.o_proj, layer.mlp.down_proj)
        )
        for module in last:
            module.register_forward_hook(
                lambda module, _, output: torch.nn.functional.dropout(output, DROPOUT, module.training)
            )


def make_optimizer(model: PreTrainedModel) -> torch.optim.AdamW:
    """Fused AdamW; norms are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS, fused=True)


def loss_of(model: PreTrainedModel, ids: torch.Tensor, mixed: bool, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of the T-1 predicted tokens in nats, float32, over ids int64 (B, T)."""
    precision: AbstractContextManager[Any] = nullcontext()
    if mixed:
        precision = torch.autocast(ids.device.type, dtype=torch.bfloat16)
    with precision:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stream: np.ndarray) -> float:
    """Over consecutive windows of CONTEXT tokens, BOS first; a special token counts no byte."""
    text_len = CONTEXT - 1
    windows = stream[: len(stream) // text_len * text_len].reshape(-1, text_len)
    ids = torch.from_numpy(np.insert(windows, 0, tokenizer.bos_token_id, axis=1)).to(model.device)
    batches = (ids[start : start + 8] for start in range(0, len(ids), 8))
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # In byte-level BPE every character of a token's written form stands for one byte.
    widths = np.array([0 if index in special else len(token) for index, token in enumerate(tokens)])
    model.eval()
    nats = math.fsum(float(loss_of(model, batch, mixed=False, reduction="sum")) for batch in batches)
    model.train()
    return nats / math.log(2) / int(widths[windows].sum())


class Training:
    """Model, optimizer and clock; ``save`` and ``resume`` keep all three."""

    def __init__(self, model: PreTrainedModel, state_file: Path) -> None:
        self.model = model
        self.optimizer = make_optimizer(model)
        self.state_file = state_file
        self.step = 0
        self.elapsed_s = 0.0

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        write_atomically(self.state_file, lambda path: torch.save(state, path))

    def resume(self) -> None:
        if self.state_file.exists():
            state = torch.load(self.state_file, weights_only=True, map_location=self.model.device)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.elapsed_s = state["step"], state["elapsed_s"]

    def update(self, ids: torch.Tensor, progress: float, mixed: bool) -> float:
        """One optimizer step; the loss before it, in nats per token."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(progress)
        loss = loss_of(self.model, ids, mixed)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())


def run(
    training: Training, stages: tuple[Batches, Batches], options: argparse.Namespace, held_out: Callable[[], float]
) -> None:
    """Steps until the time box is spent, with a look at held-out text every 20th of it."""
    limit_s, looked_at = options.minutes * 60.0, int(training.elapsed_s / (options.minutes * 60) * 20)
    average = math.nan
    with tqdm(total=round(limit_s), initial=round(training.elapsed_s), unit="s", mininterval=10) as bar:
        while training.elapsed_s < limit_s:
            started = time.monotonic()
            progress = training.elapsed_s / limit_s
            batches = stages[progress >= SHORT_UNTIL]
            ids = batches(training.step).to(training.model.device)
            loss = training.update(ids, progress, options.mixed)
            average = loss if math.isnan(average) else 0.98 * average + 0.02 * loss
            training.elapsed_s += time.monotonic() - started
            bar.update(min(round(training.elapsed_s), bar.total) - bar.n)
            bar.set_postfix(step=training.step, loss=f"{average:.3f}", refresh=False)
            if int(training.elapsed_s / limit_s * 20) > looked_at:
                looked_at += 1
                training.save()
                passes = training.step / batches.steps_per_pass
                tqdm.write(
                    f"{training.elapsed_s / 60:.1f} min, step {training.step}, pass {passes:.2f}, "
                    f"training {average:.3f} nats/token, held-out {held_out():.4f} bits/byte"
                )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """The folder that ``from_pretrained`` loads: bfloat16 safetensors, config, generation config, tokenizer."""
    model.eval().to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="demo", help="which model (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="time box of the training (%(default)s)")
    parser.add_argument("--work", type=Path, required=True, help="folder for the training state")
    parser.add_argument("--output", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--batch_size", type=int, default=8, help="windows a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and windows (%(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--mixed", action="store_true", help="bfloat16 matrix products, float32 weights")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(options.seed)
    corpus = pydoc_corpus()
    tokenizer = train_tokenizer(corpus.calibration)
    model = AutoModelForCausalLM.from_config(model_config(options.shape, tokenizer)).to(options.device).train()
    print(f"{corpus.source}; {model.num_parameters():,} parameters, vocabulary {len(tokenizer)}")
    stream = token_stream(tokenizer, corpus.calibration)
    bos, size = tokenizer.bos_token_id, options.batch_size
    short = Batches(stream, bos, size, SHORT_WINDOW, options.seed)
    long = Batches(stream, bos, size * SHORT_WINDOW // CONTEXT, CONTEXT, options.seed)
    print(f"{len(stream):,} tokens, {short.steps_per_pass} steps a pass")
    held_out = token_stream(tokenizer, corpus.evaluation)
    add_dropout(model)
    training = Training(model, options.work / "state.pt")
    training.resume()
    part = held_out[:LOOK_TOKENS]
    run(training, (short, long), options, lambda: bits_per_byte(model, tokenizer, part))
    save_model(model, tokenizer, options.output)
    reloaded = AutoModelForCausalLM.from_pretrained(options.output, dtype=torch.float32)
    figure = bits_per_byte(reloaded, tokenizer, held_out)
    print(f"{training.step} steps, {training.elapsed_s / 60:.1f} minutes, saved model {figure:.4f} bits/byte held out")


if __name__ == "__main__":
    main()
