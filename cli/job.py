"""Everything a run needs to know before it reads text or weights, checked."""

import argparse
import os
from dataclasses import dataclass

import numpy as np
import torch

from calibration import calibration_windows, check_dataset, evaluation_windows
from core.plan import PruningPlan
from core.windows import TokenWindows
from evaluation.catalogue import check_tasks
from importance.scoring import ScoreOptions
from models.loading import ModelSource, check_context, check_model, choose_device, choose_dtype
from pruning.plan_file import read_plan
from pruning.planning import Limits, budget_params, frozen_groups


@dataclass(frozen=True)
class Job:
    """What the options resolve to.

    dtype: the model computes in it. saved_dtype: checkpoints are written in it. plan: a replayed decision, or None.
    needs_text: whether anything is measured on calibration windows. evaluates: datasets for perplexity.
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

    @property
    def frozen(self) -> np.ndarray:
        """bool (G,): groups that can never be removed."""
        return frozen_groups(self.source.architecture, self.limits)


def prepare(options: argparse.Namespace) -> Job:
    """Check all that needs no weights and no tokens; raises a PruningError with one line for the first problem."""
    limits = Limits(
        freeze_first=options.freeze_first_n_layers,
        freeze_last=options.freeze_last_n_layers,
        max_block_ratio=options.max_block_ratio,
        min_kv_heads=options.min_kv_heads,
        round_to=options.round_to,
        epsilon=options.epsilon,
    )
    transforms = ScoreOptions(
        clip=options.enable_grad_clip,
        clip_low=options.clip_percentile_low,
        clip_high=options.clip_percentile_high,
        normalise=options.norm_method if options.enable_grad_norm else None,
        temperature=options.temperature,
        tau=options.tau,
    )
    device = choose_device(options.device)
    source = check_model(options.base_model, options.trust_remote_code)
    dtype = choose_dtype(options.dtype, device, source.stored_dtype)
    plan = read_plan(options.plan, source.architecture) if options.plan else None
    needs_text = plan is None and (options.importance_method != "magnitude" or options.temperature > 0)
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
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # would be a write of every buffer, of use in debugging


def describe(job: Job) -> str:
    """One line for the console: the model, its size, where and how it is computed."""
    shape = job.source.architecture
    return (
        f"{job.source.name}: {shape.model_type}, {shape.num_layers} layers, {shape.total_params:,} parameters "
        f"({shape.prunable_params:,} prunable), on {job.device} in {str(job.dtype).removeprefix('torch.')}"
    )
