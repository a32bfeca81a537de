"""Stages of a run on a random model, each beside plain backward or the arithmetic it needs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.gpu.clock import launches_and_waits, timed
from benchmarks.gpu.rows import Row
from calibration.self_text import CALIBRATING, Beginnings, written_windows
from core.families import Family
from core.groups import Architecture
from core.one_at_a_time import one_at_a_time
from core.plan import PruningPlan
from core.windows import TokenWindows
from importance.elimination import eliminate
from importance.measure import measure_importance
from importance.obs_moments import inputs_of
from models.architecture import architecture_of
from models.family_table import family_of
from pruning.recovery.distill import DistilSettings, distil
from pruning.repair import RepairSettings, repair


@dataclass(frozen=True)
class Subject:
    """A model and what is known of its cost. name: of its shape."""

    name: str
    model: Any
    family: Family
    architecture: Architecture
    device: torch.device

    @staticmethod
    def of(name: str, model: Any, device: torch.device) -> "Subject":
        family = family_of(model.config.model_type)
        return Subject(name, model, family, architecture_of(model, family), device)

    @property
    def weight_bytes(self) -> int:
        return self.architecture.total_params * self.model.dtype.itemsize

    def windows(self, count: int, seq_len: int) -> TokenWindows:
        ids = np.random.default_rng(0).integers(2, self.model.config.vocab_size, (count, seq_len))
        return TokenWindows(ids, "random", "calibration", "random ids")

    def importance(self, criterion: str, windows: TokenWindows) -> Callable[[], Any]:
        return lambda: measure_importance(self.model, self.family, self.architecture, windows, criterion=criterion)


def backward_row(subject: Subject, windows: int, seq_len: int) -> Row:
    """``loss.backward()`` with gradients of all weights, one window a pass as training code would, after a warm-up.

    Attention may be cuDNN's, the fastest, which a run passes over: its sums come in no fixed order.
    """
    ids = subject.windows(windows, seq_len).ids

    def step(row: np.ndarray) -> None:
        batch = torch.from_numpy(row[None]).to(subject.device)
        logits = subject.model(input_ids=batch, use_cache=False).logits
        F.cross_entropy(logits[0, :-1].float(), batch[0, 1:]).backward()
        subject.model.zero_grad(set_to_none=True)

    subject.model.requires_grad_(True)
    of_a_run = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        step(ids[0])
        found = timed(partial(for_each, step, ids), subject.device)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(of_a_run)
        subject.model.requires_grad_(False)
    flop = 6 * subject.architecture.total_params * seq_len
    return Row(
        f"plain backward, {subject.name}, a window of {seq_len}",
        found.seconds / windows,
        flop=flop,
        bytes=4 * subject.weight_bytes,
        peak_bytes=found.peak_bytes,
    )


def for_each(step: Callable[[np.ndarray], None], rows: np.ndarray) -> None:
    for row in rows:
        step(row)


def gradient_row(subject: Subject, criterion: str, windows: int, seq_len: int, reference: Row, aim: float) -> Row:
    """fisher (no weight gradients: 4 FLOP a parameter and token) or taylor (6), a window."""
    drawn = subject.windows(windows, seq_len)
    subject.importance(criterion, drawn.head(min(2, windows)))()
    found = timed(subject.importance(criterion, drawn), subject.device)
    few = drawn.head(min(4, windows))
    launched, waited = launches_and_waits(subject.importance(criterion, few), subject.device)
    share = len(few) * subject.architecture.num_layers
    per_param = 6 if criterion == "taylor" else 4
    return Row(
        f"{criterion}, {subject.name}, a window of {seq_len}",
        found.seconds / windows,
        reference.seconds,
        aim,
        aim_is_ratio=True,
        flop=per_param * subject.architecture.total_params * seq_len,
        bytes=(per_param // 2) * subject.weight_bytes,
        peak_bytes=found.peak_bytes,
        launches=launched / share,
        waits=waited / share,
    )


def elimination_row(inputs: int, device: torch.device, aim: float) -> Row:
    """One block of so many single inputs; 4 n^3 operations with the inverse."""
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(2 * inputs, inputs, device=device, generator=generator)
    moment = x.T @ x / len(x)
    del x
    weight = torch.randn(max(8, inputs // 4), inputs, device=device, generator=generator)
    eliminate(moment[:256, :256], weight[:, :256], 1)
    found = timed(lambda: eliminate(moment, weight, 1), device)
    small = min(inputs, 512)
    launched, waited = launches_and_waits(lambda: eliminate(moment[:small, :small], weight[:, :small], 1), device)
    return Row(
        f"elimination of {inputs:,} channels (launches and waits: a removal)",
        found.seconds,
        aim=aim,
        flop=4.0 * inputs**3,
        bytes=8.0 * 4 * inputs**2 * -(-inputs // 128),
        peak_bytes=found.peak_bytes,
        launches=launched / small,
        waits=waited / small,
    )


def obs_row(subject: Subject, windows: int, seq_len: int, aim: float | None) -> Row:
    """Moments of all layers and the elimination of every block."""
    found = timed(subject.importance("obs", subject.windows(windows, seq_len)), subject.device)
    widths = [n for layer in subject.architecture.layers for n in inputs_of(layer)]
    tokens = windows * seq_len
    flop = 4 * subject.architecture.total_params * tokens + sum(2.0 * n * n * tokens + 4.0 * n**3 for n in widths)
    return Row(
        f"obs, {subject.name}, {windows} × {seq_len}",
        found.seconds,
        aim=aim,
        flop=flop,
        bytes=4.0 * sum(n * n for n in widths),
        peak_bytes=found.peak_bytes,
    )


def criterion_row(subject: Subject, criterion: str, windows: int, seq_len: int, aim: float | None) -> Row:
    """A whole measurement."""
    found = timed(subject.importance(criterion, subject.windows(windows, seq_len)), subject.device)
    tokens = windows * seq_len
    return Row(
        f"{criterion}, {subject.name}, {windows} × {seq_len}",
        found.seconds,
        aim=aim,
        flop=6 * subject.architecture.total_params * tokens,
        bytes=3.0 * subject.weight_bytes,
        peak_bytes=found.peak_bytes,
    )


def repair_row(subject: Subject, windows: int, seq_len: int) -> Row:
    """Least squares of one layer, from 20 % of equal widths; the model is repaired in place."""
    plan = _four_fifths(subject.architecture)
    found = timed(
        lambda: repair(subject.model, subject.family, plan, subject.windows(windows, seq_len), RepairSettings()),
        subject.device,
    )
    layers, tokens = subject.architecture.num_layers, 2 * windows * seq_len  # shuffled windows come on top
    layer = subject.architecture.layers[0]
    flop = 4 * layer.total_params * tokens + sum(2.0 * n * n * tokens + 4.0 * n**3 for n in inputs_of(layer))
    return Row(
        f"repair, {subject.name}, {windows} × {seq_len}, a layer",
        found.seconds / layers,
        flop=flop,
        bytes=2.0 * subject.weight_bytes / layers,
        peak_bytes=found.peak_bytes,
    )


def writing_row(subject: Subject, rows: int, length: int) -> Row:
    """Text that the model writes, rows at once, by passes that are captured as a graph or launched. A token reads all
    weights, and on average half of the final cache."""
    config = subject.model.config
    begin = Beginnings(((config.bos_token_id,),), (), (config.eos_token_id,), config.vocab_size)

    def write(tokens: int) -> None:
        written_windows(subject.model, begin, rows, tokens, 0, CALIBRATING)

    write(4)
    found = timed(lambda: write(length), subject.device)
    with one_at_a_time(subject.model, rows, length) as writer, torch.no_grad():
        how = "captured" if writer.captured else "launched"
    kept = sum(2 * layer.num_kv_heads * layer.head_dim for layer in subject.architecture.layers)
    return Row(
        f"writing, {subject.name}, {rows} rows of {length}, a token, {how}",
        found.seconds / length,
        flop=2.0 * subject.architecture.total_params * rows,
        bytes=subject.weight_bytes + rows * length * kept * subject.model.dtype.itemsize / 2,
        peak_bytes=found.peak_bytes,
    )


def distil_row(subject: Subject, steps: int, windows: int, seq_len: int) -> Row:
    """Steps of a distillation of the model's own copy, judging it before and afterwards included."""
    small, a_step = copy.deepcopy(subject.model), windows * seq_len
    train, check = subject.windows(2 * windows, seq_len).ids, subject.windows(2, seq_len).ids
    settings = DistilSettings(steps * a_step, step_tokens=a_step)
    found = timed(lambda: distil(small, subject.model, subject.family, train, check, settings), subject.device)
    return Row(
        f"distil, {subject.name}, a step of {a_step:,} tokens",
        found.seconds / steps,
        flop=8.0 * subject.architecture.total_params * a_step,
        bytes=4.0 * subject.weight_bytes,
        peak_bytes=found.peak_bytes,
    )


def _four_fifths(architecture: Architecture) -> PruningPlan:
    """The first four fifths of every block stay, one group at least, and a multiple of 64 where there are as many."""
    groups = architecture.groups
    widths = groups.widths[groups.block]
    left = np.where(widths > 64, 0.8 * widths // 64 * 64, 0.8 * widths)
    keep = (groups.index < left) | (groups.index == 0)
    removed = int(groups.cost[~keep].sum())
    ratio = removed / architecture.prunable_params
    return PruningPlan(architecture, keep, (), ratio, "prunable", removed, removed, "")
