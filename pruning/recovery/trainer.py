"""transformers' Trainer, taught by another model, and what it changes in its process put back."""

import os
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from core.progress import tqdm
from core.say import say
from pruning.recovery.kl import divergence

TIMED_STEPS = 3  # after which the whole is told; the first is slower than the rest and does not count


class Distiller(Trainer):
    """Its loss is the divergence from ``teacher``, which is on the same device."""

    def __init__(self, teacher: Any, **given: Any) -> None:
        super().__init__(**given)
        self.teacher = teacher
        self.model_accepts_loss_kwargs = False  # the loss is a mean over a batch
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        ids = inputs["input_ids"]
        with torch.no_grad():
            taught = self.teacher(input_ids=ids, use_cache=False).logits
        return divergence(model(input_ids=ids, use_cache=False).logits, taught)


class Watching(TrainerCallback):
    """A bar, a line that says how long it will take, and the losses for the report."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.losses, self.bar, self.started = tokens, [], None, 0.0

    losses: list[tuple[int, float]]  # step, mean loss since the one before, nats per token
    bar: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="distil", unit="step", leave=False)
        self.first = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update()
        done = state.global_step - self.first
        if done == 1:
            self.started = time.perf_counter()
        if done == 1 + TIMED_STEPS:
            step_s = (time.perf_counter() - self.started) / TIMED_STEPS
            minutes = (state.max_steps - state.global_step) * step_s / 60
            say(f"distilling on {self.tokens:,} tokens in {state.max_steps:,} steps: about {minutes:.1f} minutes")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append((state.global_step, float(logs["loss"])))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


class Windows(torch.utils.data.Dataset):
    def __init__(self, ids: np.ndarray) -> None:
        self.ids = torch.from_numpy(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[row]}


def collate(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.stack([row["input_ids"] for row in rows])}


def arguments(device: torch.device, half: bool, folder: Path, report_to: Sequence[str], **given: Any) -> Any:
    """TrainingArguments for one process and one device.

    half: matrix products in half precision over float32 masters, bfloat16 where the device has it.
    """
    bf16 = half and (device.type != "cuda" or torch.cuda.is_bf16_supported())
    made = TrainingArguments(
        output_dir=str(folder),
        use_cpu=device.type == "cpu",
        bf16=bf16,
        fp16=half and not bf16,
        report_to=list(report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda",
        dataloader_drop_last=True,
        **given,
    )
    # The device of the session, and no other GPU that the process sees.
    made.__dict__["_setup_devices"], made._n_gpu = device, min(made.n_gpu, 1)
    return made


@contextmanager
def newer_names_unsaid() -> Iterator[None]:
    """Inside, transformers does not warn of names that only its next release takes away; older ones know no others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def surroundings_kept(device: torch.device) -> Iterator[None]:
    """Inside, accelerate works on ``device``; afterwards random numbers and the environment are as they were."""
    environment, python, numpy_state = dict(os.environ), random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    in_use = PartialState._shared_state != {}
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", "runs")
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        if not in_use:
            AcceleratorState._reset_state(reset_partial_state=True)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
