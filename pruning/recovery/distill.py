"""Recovery by distillation: the whole narrow model is trained to predict what the dense model predicts.

    loss = mean over tokens of KL(dense ‖ narrow)        (``pruning.recovery.kl``)

What is trained are the decoder layers; embeddings, the last norm and the head, which the cut left whole, stay the dense
model's. The rate follows the width, RATE / hidden size, as maximal update parametrisation has it for Adam
(arXiv:2203.03466), and what there is to make up for: a divergence grows with the square of how far weights are off, so
below FAR nats the rate falls with its root. Steps of more than LARGE_STEP tokens are fewer and have less noise, so the
rate grows with the root of their size (arXiv:2205.10287). AdamW without decay, a short warm-up, then half a cosine.
Half-precision layers are trained as float32 masters, and a CPU that multiplies bfloat16 does so for what is saved in
half precision. With LoRA (arXiv:2106.09685) only adapters are trained, then merged.

Windows that no step sees decide what is kept: weights go from where they were towards where training ended, the whole
way, three quarters, half, a quarter of it, or not at all, whichever is nearest to the dense model there. A short
training at a rate that a badly damaged model needs would else leave a good one worse for its noise.

Several processes share the windows of a step, each with both models; torch's DistributedDataParallel, which Trainer
puts around the model, averages their gradients. Memory is tried by each alone first, since a process that gave up in
the middle of an exchange would leave the others waiting.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from core import ranks
from core.as_found import left_as_found
from core.batching import TOKENS_A_BATCH, is_out_of_memory
from core.determinism import is_refusal, only_deterministic
from core.errors import UsageError, reason_of
from core.families import Family
from core.precision import half_of, halves_pay, name_of, products_of
from core.say import note
from pruning.recovery.checkpoints import Checkpoints
from pruning.recovery.kl import HeldOut, divergence, held_out
from pruning.recovery.report import DistilReport
from pruning.recovery.trainer import (
    MOMENTS,
    Distiller,
    Watching,
    Windows,
    arguments,
    collate,
    forward_kept,
    newer_names_unsaid,
    surroundings_kept,
)

RATE, LORA_RATE = 0.12, 0.6  # over the hidden size, for a model that is at least FAR from the dense one
FAR = 0.16  # nats per token
STEPS, STEP_TOKENS = 1000, (1024, 8192)  # steps that a budget is divided into, and what one takes at least and at most
LARGE_STEP = 4096  # tokens, from which on the rate grows with the root of a step, up to the largest
SHARES = (1.0, 0.75, 0.5, 0.25)  # of the way to the trained weights
LOOKS = 20  # losses that the report keeps
MEMORY = "memory"  # what a process lacks


class NoRoom(UsageError):
    """Not even one window fits in memory."""


@dataclass(frozen=True)
class DistilSettings:
    """tokens: to train on, all steps together. lora: rank of the adapters, None: all of the layers is trained.
    stored_dtype: weights are rounded to what they will be saved in before they are judged; None: their own.
    report_to: trackers by their names in transformers. step_tokens: tokens a step; None: as ``tokens`` suggests."""

    tokens: int
    lora: int | None = None
    stored_dtype: torch.dtype | None = None
    seed: int = 0
    report_to: tuple[str, ...] = ()
    step_tokens: int | None = None

    @property
    def a_step(self) -> int:
        """Tokens: a small budget goes further in many small steps than in few large ones."""
        least, most = STEP_TOKENS
        return self.step_tokens or min(most, max(least, self.tokens // STEPS))


def distil(
    small: Any,
    dense: Any,
    family: Family,
    train: np.ndarray,
    check: np.ndarray,
    settings: DistilSettings,
    checkpoints: Checkpoints | None = None,
) -> DistilReport:
    """Train ``small`` in place, as far as the divergence on ``check`` falls; else its weights are as before.

    train, check: int64 (N, T) and (M, T), windows that share no token. dense: on the same device, only read.
    checkpoints: what an earlier run that was killed left, and where this one leaves its own; None for none.
    Raises NoRoom where one window does not fit in memory; the weights are then as before.
    """
    layers = small.get_submodule(family.layers)
    train = np.tile(train, (-(-ranks.count() // len(train)), 1))  # at least a window for each process
    with left_as_found(small), left_as_found(dense):
        before = _judged_before(small, dense, check)
        weights = [parameter.detach().to("cpu", copy=True) for parameter in layers.parameters()]
        share_of_step = _windows_a_step(train, settings)
        step_tokens = share_of_step * ranks.count() * train.shape[1]
        rate = rate_of(small.config.hidden_size, before.kl, settings.lora, step_tokens)
        watching, steps = _trained_with_what_fits(
            small, dense, family, weights, train, settings, share_of_step, rate, checkpoints
        )
        with torch.no_grad():
            ranks.send(layers.parameters(), 0, "distilled weights")  # equal already, where all machines compute alike
        trained = [parameter.detach().to("cpu", copy=True) for parameter in layers.parameters()]
        found = {}
        for share in SHARES:
            _set(layers, _between(weights, trained, share, settings.stored_dtype, small.device))
            found[share] = held_out(small, dense, check)
        share = min(found, key=lambda share: found[share].kl)
        after = found[share]
        if after.kl < before.kl:
            _set(layers, _between(weights, trained, share, settings.stored_dtype, small.device))
        else:
            share = 0.0
            _set(layers, weights)
    products = half_of(small.device) if halves_pay(small, small.device, settings.stored_dtype) else small.dtype
    return _report(train, check, settings, steps, step_tokens, rate, share, before, after, watching, products)


def rate_of(width: int, divergence: float, lora: int | None, a_step: int = LARGE_STEP) -> float:
    """The highest learning rate for a hidden size, a held-out divergence before training (nats per token), and tokens a
    step."""
    less = min(1.0, math.sqrt(divergence / FAR)) if divergence > 0 else 1.0
    return less * of_large_steps(a_step) * (RATE if lora is None else LORA_RATE) / width


def of_large_steps(a_step: int) -> float:
    """What a rate is multiplied by for so many tokens a step."""
    return math.sqrt(min(max(a_step, LARGE_STEP), STEP_TOKENS[1]) / LARGE_STEP)


def _windows_a_step(train: np.ndarray, settings: DistilSettings) -> int:
    """Of this process: its share of a step."""
    return max(1, min(round(settings.a_step / train.shape[1]), len(train)) // ranks.count())


def training_bytes(small: Any, family: Family, settings: DistilSettings) -> int:
    """What masters, gradients and moments of the layers take beside the model as it is, and a copy to go back to where
    that is on the same device; with adapters the last alone."""
    parameters = list(small.get_submodule(family.layers).parameters())
    count, held = sum(parameter.numel() for parameter in parameters), sum(parameter.nbytes for parameter in parameters)
    copies = held if small.device.type == "cpu" else 0
    if settings.lora is not None:
        return copies
    if halves_pay(small, small.device, settings.stored_dtype):
        copies += 2 * count  # as products take them
    return copies + 4 * (2 + MOMENTS) * count - held


def _judged_before(small: Any, dense: Any, check: np.ndarray) -> HeldOut:
    try:
        return held_out(small, dense, check)
    except UsageError as error:
        raise NoRoom("a held-out window does not fit in memory: use a shorter --seq_len") from error


def _trained_with_what_fits(
    small: Any,
    dense: Any,
    family: Family,
    weights: list[torch.Tensor],
    train: np.ndarray,
    settings: DistilSettings,
    a_step: int,
    rate: float,
    kept: Checkpoints | None,
) -> tuple[Watching, int]:
    """Windows a pass are halved down to LARGE_STEP tokens, then activations computed again in backward, then windows
    halved, for as long as memory does not suffice; a step stays as large as it is. Each attempt begins with the weights
    there were."""
    seq_len = train.shape[1]
    at_once, recompute, strict = a_step, False, True
    if small.device.type == "cpu":
        at_once = max(1, min(a_step, TOKENS_A_BATCH // seq_len))
    while True:
        try:
            return _trained(small, dense, family, train, settings, a_step, at_once, recompute, strict, rate, kept)
        except RuntimeError as error:
            if strict and is_refusal(error):
                strict = False
                note(f"recovered weights differ in their last digits from run to run: {reason_of(error, 160)}")
            elif not is_out_of_memory(error):
                raise
            elif recompute and at_once == 1:
                _set(small.get_submodule(family.layers), weights)
                raise NoRoom(
                    "distillation does not fit in memory with a single window: use --recover_lora 16, a shorter "
                    "--seq_len, or --recover blocks"
                ) from error
            elif at_once > 1 and (recompute or at_once * seq_len > LARGE_STEP):
                at_once //= 2
            else:
                recompute = True
        _set(small.get_submodule(family.layers), weights)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _trained(
    small: Any,
    dense: Any,
    family: Family,
    train: np.ndarray,
    settings: DistilSettings,
    a_step: int,
    at_once: int,
    recompute: bool,
    strict: bool,
    rate: float,
    kept: Checkpoints | None,
) -> tuple[Watching, int]:
    """Train with passes of ``at_once`` windows, as many as make up this process's share ``a_step`` of a step."""
    passes = max(1, a_step // at_once)
    step_windows = passes * at_once * ranks.count()
    steps = max(1, settings.tokens // (step_windows * train.shape[1]))
    half = halves_pay(small, small.device, settings.stored_dtype)
    watching = Watching(settings.tokens)
    with (
        nullcontext(kept.folder) if kept else TemporaryDirectory(prefix="global-pruning-") as folder,
        surroundings_kept(small.device),
        _open(small, family, settings) as student,
        forward_kept(student),
        _recomputing(small, recompute),
        only_deterministic(small.device, strict),
    ):
        options = arguments(
            small.device,
            half=half,
            folder=Path(folder),
            report_to=settings.report_to,
            max_steps=steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=passes,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 20,
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=max(1, steps // LOOKS),
            seed=settings.seed,
        )
        data = {"train_dataset": Windows(train), "data_collator": collate}
        if ranks.count() > 1:
            _try_alone(student, dense, train[:at_once], half=half)
        agrees = {"steps": steps, "step_windows": step_windows, "half": half}
        Distiller(
            dense, half, recompute, kept, agrees, model=student, args=options, callbacks=[watching], **data
        ).train_on()
    return watching, steps


def _try_alone(student: Any, dense: Any, ids: np.ndarray, *, half: bool) -> None:
    """A pass of this process beside as much memory as optimiser and exchange will take. Raises on every process what
    one of them lacks, and leaves no gradient."""
    failed: str | None = None
    trained = [values for values in student.parameters() if values.requires_grad]
    try:
        held = [torch.empty_like(values) for values in trained for _ in range(MOMENTS + 1)]
        rows = torch.from_numpy(ids).to(student.device)
        student.train()  # without which activations are not computed again
        with products_of(student.device, half):
            taught = dense(input_ids=rows, use_cache=False).logits
            loss = divergence(student(input_ids=rows, use_cache=False).logits, taught)
        loss.backward()
        del held
    except RuntimeError as error:  # which is not kept: it would hold on to all that memory
        failed = MEMORY if is_out_of_memory(error) else str(error)
    for values in trained:
        values.grad = None
    told = ranks.gathered(failed, "a pass alone")
    if MEMORY in told:
        raise torch.OutOfMemoryError("in one of the processes")
    refused = next(filter(None, told), None)
    if refused is not None:
        raise RuntimeError(refused)


@contextmanager
def _open(small: Any, family: Family, settings: DistilSettings) -> Iterator[Any]:
    """Inside, the model to train; afterwards ``small`` with what was learnt, in the dtype it had."""
    layers = small.get_submodule(family.layers)
    if settings.lora is None:
        dtypes = [parameter.dtype for parameter in layers.parameters()]
        layers.float().requires_grad_(True)
        try:
            yield small
        finally:
            layers.requires_grad_(False)
            for parameter, dtype in zip(layers.parameters(), dtypes, strict=True):
                parameter.data = parameter.data.to(dtype)
        return
    from peft import LoraConfig, get_peft_model

    members = sorted({member.path.rpartition(".")[2] for member in family.members})
    config = LoraConfig(r=settings.lora, lora_alpha=2 * settings.lora, lora_dropout=0.0, target_modules=members)
    with newer_names_unsaid():
        adapted = get_peft_model(small, config)
    try:
        yield adapted
    except BaseException:
        adapted.unload()
        raise
    adapted.merge_and_unload()


@contextmanager
def _recomputing(small: Any, wanted: bool) -> Iterator[None]:
    """Inside, where wanted, layers compute their activations again in backward."""
    if wanted:
        with newer_names_unsaid():
            small.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if wanted:
            with newer_names_unsaid():
                small.gradient_checkpointing_disable()
            if getattr(small, "_require_grads_hooks", None):  # of the frozen embedding; nobody else removes them
                small.disable_input_require_grads()


def _between(
    before: list[torch.Tensor],
    trained: list[torch.Tensor],
    share: float,
    dtype: torch.dtype | None,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Weights that far on the way from one to the other, rounded to ``dtype``; computed on ``device``."""
    for start, end in zip(before, trained, strict=True):
        yield start.to(device).float().lerp(end.to(device).float(), share).to(dtype or start.dtype)


@torch.no_grad()
def _set(layers: Any, weights: Iterable[torch.Tensor]) -> None:
    for parameter, values in zip(layers.parameters(), weights, strict=True):
        parameter.copy_(values)


def _report(
    train: np.ndarray,
    check: np.ndarray,
    settings: DistilSettings,
    steps: int,
    step_tokens: int,
    rate: float,
    share: float,
    before: HeldOut,
    after: HeldOut,
    watching: Watching,
    products: torch.dtype,
) -> DistilReport:
    return DistilReport(
        tokens=settings.tokens,
        steps=steps,
        step_tokens=step_tokens,
        rate=rate,
        windows=len(train),
        windows_held_out=len(check),
        seq_len=train.shape[1],
        lora=settings.lora,
        kept=share > 0,
        share=share,
        kl_before=before.kl,
        kl_after=after.kl,
        nll_before=before.nll,
        nll_after=after.nll,
        losses=tuple(watching.losses),
        resumed_from_step=watching.resumed_from_step,
        products=name_of(products),
    )
