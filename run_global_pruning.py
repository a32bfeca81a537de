#!/usr/bin/env python3
"""Global structured pruning of a Hugging Face causal LM, from a shell. ``--help`` lists the options.

parse -> check -> windows -> load -> statistics -> importance -> scores -> plan -> surgery -> save -> evaluate -> report
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from cli.options import idle_options, parse_options
from cli.output import RECORD, check_output, clear_earlier_run
from cli.record import Stages, resolved, run_record
from core.errors import PruningError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (see the end of ``--help``)."""
    options = parse_options(argv)
    try:
        run(options)
    except PruningError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; {options.output} has no {RECORD} and is not a finished run", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    for note in idle_options(options):
        print(f"note: {note}", file=sys.stderr)
    check_output(options.output, options.overwrite)
    quieten_libraries()
    stages = Stages()

    with stages("check"):
        from calibration import calibration_windows, check_dataset, evaluation_windows
        from evaluation.catalogue import check_tasks
        from importance.scoring import ScoreOptions, score_groups
        from models.loading import check_context, check_model, choose_device, choose_dtype, load_model
        from pruning.plan_file import read_plan, write_plan
        from pruning.planning import Limits, budget_params, frozen_groups, plan_removal

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
        saved_dtype = source.stored_dtype if options.dtype == "auto" else dtype
        architecture, family = source.architecture, source.family
        plan = read_plan(options.plan, architecture) if options.plan else None
        needs_text = plan is None and (options.importance_method != "magnitude" or options.temperature > 0)
        if plan is None:
            budget_params(architecture, options.pruning_ratio, options.ratio_of, limits)
        if needs_text:
            check_context("--seq_len", options.seq_len, source.context)
        options.eval_seq_len = options.eval_seq_len or min(2048, source.context)
        check_context("--eval_seq_len", options.eval_seq_len, source.context)
        texts = {options.dataset} if needs_text else set()
        for name in sorted(texts | (set(options.eval_datasets) if "ppl" in options.measures else set())):
            check_dataset(name)
        check_tasks(options.tasks, options.eval_task_path)
        make_deterministic(options.seed)

    with stages("windows"):
        windows = {}
        if needs_text:
            windows["calibration"] = calibration_windows(
                options.dataset, source.tokenizer, options.num_samples, options.seq_len, options.seed
            )
        held_out = {}
        for name in options.eval_datasets if "ppl" in options.measures else []:
            held_out[name] = evaluation_windows(
                name,
                source.tokenizer,
                options.eval_seq_len,
                options.eval_samples,
                calibration_dataset=options.dataset,  # so that replays and data-free runs judge on the same text
            )

    with stages("load model"):
        model = load_model(source, device, dtype)

    importance = scores = prior = None
    frozen = frozen_groups(architecture, limits)
    if plan is None:
        from importance.measure import measure_importance
        from importance.priors import measure_prior

        calibration = windows.get("calibration")
        with stages("importance"):
            importance = measure_importance(
                model,
                family,
                architecture,
                calibration,
                criterion=options.importance_method,
                gradient_reduction=options.gradient_reduction,
                batch_size=options.batch_size,
            )
        if options.temperature > 0:
            assert calibration is not None
            with stages("prior"):
                prior = measure_prior(
                    model,
                    family,
                    calibration.head(options.prior_samples),
                    method=options.prior,
                    batch_size=options.batch_size,
                )
        with stages("plan"):
            scores = score_groups(architecture.groups, importance.values, transforms, frozen=frozen, prior=prior)
            plan = plan_removal(
                architecture,
                scores.order,
                ratio=options.pruning_ratio,
                ratio_of=options.ratio_of,
                limits=limits,
            )

    with stages("diagnose"):
        from diagnostics.diagnosis import diagnose
        from diagnostics.pictures import draw_pictures
        from diagnostics.remedies import ActiveRemedies
        from diagnostics.reports import write_reports

        active = ActiveRemedies(
            clip=transforms.clip,
            normalise=transforms.normalise,
            temperature=transforms.temperature,
            max_block_ratio=limits.max_block_ratio,
            criterion=options.importance_method,
            clip_percentiles=(transforms.clip_low, transforms.clip_high),
        )
        diagnosis = diagnose(architecture, importance, scores, plan, prior, frozen, active)
        clear_earlier_run(options.output)
        written = [write_plan(options.output / "analysis" / "pruning_plan.json", plan)]
        written += write_reports(options.output / "analysis", diagnosis, plan, importance, scores)
        written += draw_pictures(options.output / "visualization", diagnosis, plan, importance, scores)

    results: dict[str, Any] = {"dense": None, "pruned": None}
    if options.measures:
        from evaluation.evaluate import evaluate, write_results

        judge = {
            "task_names": options.tasks,
            "task_path": options.eval_task_path,
            "measures": options.measures,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "stored_as": saved_dtype,
        }
        with stages("evaluate dense"):
            results["dense"] = evaluate(model, source.tokenizer, held_out, label="dense", **judge)

    if not options.dry_run:
        from models.narrow import empty_narrow_model
        from models.saving import save_checkpoint
        from pruning.surgery import operate

        with stages("surgery"):
            model = operate(model, empty_narrow_model(model, family, plan), family, plan)
        if not options.no_save_model:
            with stages("save"):
                folder = options.output / "model"
                written.append(save_checkpoint(model, family, source.tokenizer, folder, saved_dtype))
        if options.measures:
            with stages("evaluate pruned"):
                results["pruned"] = evaluate(model, source.tokenizer, held_out, label="pruned", **judge)

    with stages("report"):
        from core.files import write_json
        from diagnostics.console import closing_report

        if options.measures:
            written.append(write_results(options.output / "evaluation" / "evaluation_results.json", **results))
        windows |= {f"evaluation {name}": item for name, item in held_out.items()}
        facts = {
            "windows_used": importance.windows_used if importance else 0,
            "windows_skipped": importance.windows_skipped if importance else 0,
            "second_order_share": importance.second_order_share if importance else None,
        }
        record = run_record(resolved(options), stages, device, windows, facts)
        written.append(write_json(options.output / RECORD, record))
    print(closing_report(diagnosis, plan, results, options.argv, options.output, written))


def quieten_libraries() -> None:
    """Progress and findings are ours to show; the libraries' own notes stay out of the way unless asked for."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # same seed, same plan, also on a GPU
    from transformers.utils import logging

    logging.disable_progress_bar()


def make_deterministic(seed: int) -> None:
    import torch

    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


if __name__ == "__main__":
    sys.exit(main())
