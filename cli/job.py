"""Everything a run needs to know before it reads text or weights, checked."""

import argparse
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibration import calibration_windows, check_dataset, evaluation_windows
from core.measures import Outliers
from core.plan import PruningPlan
from core.windows import TokenWindows
from evaluation.catalogue import check_tasks
from evaluation.fit import check_fit
from importance.scoring import ScoreOptions
from models.gguf import check_gguf
from models.loading import ModelSource, check_context, check_model, choose_device, choose_dtype
from models.stock import possible_kv_widths
from pruning.plan_file import read_plan
from pruning.planning import Limits, budget_params, frozen_groups
from pruning.targets import check_plan, default_round_to, explain, limits_for


@dataclass(frozen=True)
class Job:
    """What the options resolve to.

    dtype: the model computes in it. saved_dtype: checkpoints are written in it. plan: a replayed decision, or None.
    needs_text: whether anything is measured or refitted on calibration windows. evaluates: datasets for perplexity.
    outliers: those of the model, once they have been measured; ``limits`` protects them where that was asked for.
    """

    source: ModelSource
    device: torch.device
    dtype: torch.dtype
    saved_dtype: torch.dtype
    limits: Limits
    transforms: ScoreOptions
    plan: PruningPlan | None
    needs_text: bool
    evaluates: tuple[str, ...]
    outliers: Outliers | None = None

    @property
    def frozen(self) -> np.ndarray:
        """bool (G,): groups that can never be removed. A replayed plan was made under limits of its own."""
        return frozen_groups(self.source.architecture, self.limits if self.plan is None else Limits())


def prepare(options: argparse.Namespace) -> Job:
    """Check all that needs no weights and no tokens; raises a PruningError with one line for the first problem."""
    transforms = transforms_of(options)
    device = choose_device("cpu" if options.low_memory else options.device)
    source = check_model(options.base_model, options.trust_remote_code)
    limits, shapes = limits_of(source, options)
    dtype = choose_dtype(options.dtype, device, source.stored_dtype)
    plan = read_plan(options.plan, source.architecture) if options.plan else None
    if plan is not None:
        check_plan(options.target, plan, **shapes)
    needs_text = options.measures_on_text or options.reconstructs
    if plan is None:
        budget_params(source.architecture, options.pruning_ratio, options.ratio_of, limits)
    if needs_text:
        check_context("--seq_len", options.seq_len, source.context)
    evaluates = tuple(options.eval_datasets) if "ppl" in options.measures else ()
    options.eval_seq_len = options.eval_seq_len or min(2048, source.context)
    check_context("--eval_seq_len", options.eval_seq_len, source.context)
    for name in dict.fromkeys([options.dataset] * needs_text + list(evaluates)):
        check_dataset(name)
    check_tasks(options.tasks, options.eval_task_path)
    if "tasks" in options.measures:
        check_fit(options.tasks, options.eval_task_path, source.tokenizer, source.config)
    if options.export == "gguf":
        check_gguf(source)
    return Job(
        source=source,
        device=device,
        dtype=dtype,
        saved_dtype=source.stored_dtype if options.dtype == "auto" else dtype,
        limits=limits,
        transforms=transforms,
        plan=plan,
        needs_text=needs_text,
        evaluates=evaluates,
    )


def transforms_of(options: argparse.Namespace) -> ScoreOptions:
    return ScoreOptions(
        clip=options.enable_grad_clip,
        clip_low=options.clip_percentile_low,
        clip_high=options.clip_percentile_high,
        normalise=options.norm_method if options.enable_grad_norm else None,
        temperature=options.temperature,
        tau=options.tau,
    )


def limits_of(source: ModelSource, options: argparse.Namespace) -> tuple[Limits, dict[str, Any]]:
    """The limits the options and the target set, and what the target wants of shapes; round_to is resolved."""
    architecture = source.architecture
    options.round_to = options.round_to or default_round_to(architecture)
    shapes: dict[str, Any] = {"tensor_parallel": options.tensor_parallel}
    if options.target == "stock":
        shapes["kv_widths"] = possible_kv_widths(source.config, source.family, architecture)
    asked = Limits(
        freeze_first=options.freeze_first_n_layers,
        freeze_last=options.freeze_last_n_layers,
        max_block_ratio=options.max_block_ratio,
        min_kv_heads=options.min_kv_heads,
        round_to=options.round_to,
        epsilon=options.epsilon,
    )
    return limits_for(options.target, architecture, asked, **shapes), shapes


def read_windows(job: Job, options: argparse.Namespace) -> tuple[TokenWindows | None, dict[str, TokenWindows]]:
    """Calibration windows (None where nothing is measured on text), and evaluation windows by dataset name."""
    tokenizer = job.source.tokenizer
    calibration = None
    if job.needs_text:
        calibration = calibration_windows(
            options.dataset, tokenizer, options.num_samples, options.seq_len, options.seed
        )
    # --dataset is named even where nothing calibrates on it, so that replays are judged on the same text.
    held_out = {
        name: evaluation_windows(name, tokenizer, options.eval_seq_len, options.eval_samples, options.dataset)
        for name in job.evaluates
    }
    return calibration, held_out


def quieten_libraries() -> None:
    """Progress and findings are ours to show; the libraries' own notes stay out of the way unless asked for."""
    from transformers.utils import logging

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    logging.disable_progress_bar()


def make_deterministic(seed: int) -> None:
    """Same machine, threads and seed: same plan, byte for byte. cuBLAS reads its variable when first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The other half of that switch writes every buffer before its use, which helps debugging only.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe(job: Job, target: str) -> str:
    """For the console: the model, its size, where and how it is computed; a line for each restriction of the target."""
    shape = job.source.architecture
    lines = explain(target, shape, job.limits) if job.plan is None else []
    return "\n".join([_headline(job), *lines])


def _headline(job: Job) -> str:
    shape = job.source.architecture
    return (
        f"{job.source.name}: {shape.model_type}, {shape.num_layers} layers, {shape.total_params:,} parameters "
        f"({shape.prunable_params:,} prunable), on {job.device} in {str(job.dtype).removeprefix('torch.')}"
    )
