"""transformers' Trainer, taught by another model, and what it changes in its process put back.

On resuming, Trainer reads its own files by ``torch.load(weights_only=True)``, which builds tensors, numbers and
containers and calls nothing else; what is trained is kept as safetensors.
"""

import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from core import ranks
from core.determinism import is_refusal
from core.graphs import worth_capturing
from core.precision import half_of, products_of
from core.progress import tqdm
from core.say import say
from pruning.recovery import checkpoints
from pruning.recovery.captured_step import CapturedStep, can_capture
from pruning.recovery.checkpoints import Checkpoints
from pruning.recovery.kl import divergence

TIMED_STEPS = 3  # after which the whole is told; the first is slower than the rest and does not count
WEIGHTS = "model.safetensors"
# What tells accelerate of other processes.
LAUNCHED = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
)
MOMENTS = 2  # of Adam, as large as what is trained


class Distiller(Trainer):
    """Its loss is the divergence from ``teacher``, which is on the same device.

    half: whether products are computed in half precision, as ``args`` has the student do; the teacher's too.
    recomputed: whether layers compute their activations again. kept: where its checkpoints go, None: nowhere. attempt:
    what one of them has to agree with, beside ``kept.key``.
    """

    def __init__(
        self,
        teacher: Any,
        half: bool,
        recomputed: bool,
        kept: Checkpoints | None,
        attempt: dict[str, Any],
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self.teacher, self.half, self.kept, self.attempt = teacher, half, kept, attempt
        # What is not the same every time: a loss that is scaled as gradients come out, an exchange; recomputing notes
        # down the state of random numbers.
        changing = recomputed or self.args.fp16 or ranks.count() > 1
        self.capturing = not changing and worth_capturing(self.args.device) and can_capture(self.both, self.args.device)
        self.captured = None
        self.model_accepts_loss_kwargs = False  # the loss is a mean over a batch
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        ids = inputs["input_ids"]
        with torch.no_grad(), products_of(ids.device, self.half and self.teacher.dtype == torch.float32):
            taught = self.teacher(input_ids=ids, use_cache=False).logits
        return divergence(model(input_ids=ids, use_cache=False).logits, taught)

    captured: CapturedStep | None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        if self.capturing and self.captured is None:
            self._capture(model, self._prepare_inputs(inputs)["input_ids"])
        if self.captured is None:
            return super().training_step(model, inputs, num_items_in_batch)
        ids = self._prepare_inputs(inputs)["input_ids"]
        return self.captured(ids, 1 / self.current_gradient_accumulation_steps)

    def _capture(self, model: Any, ids: torch.Tensor) -> None:
        """Where it cannot be done, or memory does not suffice, steps are launched as they come."""
        trained, room = [*self.trained.values()], []
        try:
            # The optimiser makes its moments in the first step, when the graph has its memory already.
            to_come = 0 if self.optimizer.state else MOMENTS
            room += [torch.empty_like(values) for values in trained for _ in range(to_come)]
            self.captured = CapturedStep(self._loss_of(model), self.both, trained, ids)
        except RuntimeError as error:
            if is_refusal(error):
                raise
            self.capturing = False
        finally:
            room.clear()
        if ids.is_cuda:
            torch.cuda.empty_cache()

    def _loss_of(self, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda ids: self.compute_loss(model, {"input_ids": ids})

    @property
    def both(self) -> tuple[Any, Any]:
        """Student and teacher as transformers made them, without adapters' wrapping."""
        student = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return student, self.teacher

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Parameters that training changes, by name."""
        return {name: values for name, values in self.model.named_parameters() if values.requires_grad}

    def train_on(self) -> Any:
        """``train``, from the last checkpoint on where there is one."""
        latest = self.kept and self.kept.latest(**self.attempt)
        try:
            return self.train(resume_from_checkpoint=str(latest) if latest else None)
        finally:
            if self.captured is not None:
                self.captured = None
                torch.cuda.empty_cache()  # of the graph, which nothing else could use

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.kept is not None:
            size = (1 + MOMENTS) * sum(values.nbytes for values in self.trained.values())
            save = super()._save_checkpoint
            self.kept.write(self.state.global_step, lambda: save(model, trial), size, **self.attempt)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What is trained alone: the rest stays as it was."""
        assert output_dir is not None
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            tensors = {name: values.detach().contiguous() for name, values in self.trained.items()}
            save_file(tensors, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with safe_open(Path(resume_from_checkpoint) / WEIGHTS, "pt") as file, torch.no_grad():
            for name, values in self.trained.items():
                values.copy_(file.get_tensor(name))


class Watching(TrainerCallback):
    """A bar, a line that says how long it will take, when checkpoints are due, and the losses for the report."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.losses, self.bar, self.started = tokens, [], None, 0.0
        self.resumed_from_step, self.save_every = None, 0

    losses: list[tuple[int, float]]  # step, mean loss since the one before (or since training went on), nats per token
    resumed_from_step: int | None  # of the checkpoint that training went on from
    save_every: int  # steps from one checkpoint to the next, 0: not known yet
    bar: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="distil", unit="step", leave=False)
        self.first = state.global_step
        if self.first:
            self.resumed_from_step = self.first
            say(f"an interrupted distillation goes on from step {self.first:,} of {state.max_steps:,}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update()
        done = state.global_step - self.first
        if done == 1:
            self.started = time.perf_counter()
        if done == 1 + TIMED_STEPS:
            step_s = (time.perf_counter() - self.started) / TIMED_STEPS
            minutes = (state.max_steps - state.global_step) * step_s / 60
            say(f"distilling on {self.tokens:,} tokens in {state.max_steps:,} steps: about {minutes:.1f} minutes")
            # By the first process's clock, so that all of them write the same steps.
            self.save_every = ranks.from_first(max(1, round(checkpoints.EVERY_S / step_s)), "steps to a checkpoint")
        if self.save_every and done % self.save_every == 0 and state.global_step < state.max_steps:
            control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()
        losses = [(logs["step"], float(logs["loss"])) for logs in state.log_history if "loss" in logs]
        self.losses = [(step, loss) for step, loss in losses if math.isfinite(loss)]


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
    """TrainingArguments for this process and its one device.

    half: matrix products in half precision over float32 masters, bfloat16 where the device has it.
    """
    bf16 = half and half_of(device) == torch.bfloat16
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
        logging_nan_inf_filter=False,  # which waits for the device twice a pass; ``Watching`` keeps finite losses alone
        save_strategy="no",  # but for those that ``Watching`` asks for
        save_on_each_node=True,
        ddp_backend="gloo" if device.type == "cpu" and ranks.count() > 1 else None,
        ddp_find_unused_parameters=False,
        **given,
    )
    # The device of the session, and no other GPU that the process sees.
    made.__dict__["_setup_devices"], made._n_gpu = device, min(made.n_gpu, 1)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # which TrainingArguments set to the first one
    return made


@contextmanager
def forward_kept(model: Any) -> Iterator[None]:
    """Inside, accelerate may wrap the model's ``forward`` (autocast, logits in float32); afterwards it is what it was,
    which Trainer does not see to, and may be wrapped again."""
    names = ("forward", "_original_forward", "_is_accelerate_prepared")
    before = {name: model.__dict__[name] for name in names if name in model.__dict__}
    try:
        yield
    finally:
        for name in names:
            model.__dict__.pop(name, None)
        model.__dict__.update(before)


@contextmanager
def newer_names_unsaid() -> Iterator[None]:
    """Inside, transformers does not warn of names that only its next release takes away; older ones know no others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def surroundings_kept(device: torch.device) -> Iterator[None]:
    """Inside, accelerate works on ``device`` and with the processes of this run, none where it is alone, whatever the
    environment says; afterwards random numbers and the environment are as they were."""
    environment, python, numpy_state = dict(os.environ), random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    in_use = PartialState._shared_state != {}
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", "runs")
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate chooses, and warns
    for name in LAUNCHED if ranks.count() == 1 else ():
        os.environ.pop(name, None)
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
