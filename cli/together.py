"""Options next to one another: combinations that cannot work, and options that cannot act."""

import argparse

from cli.output import cache_folder

DEFAULT_TASK = "pydoc_cloze"


def check_together(options: argparse.Namespace) -> None:
    """Check options against one another and fill in what they imply; ValueError with one line otherwise."""
    low, high = options.clip_percentile_low, options.clip_percentile_high
    if low >= high:
        raise ValueError(f"--clip_percentile_low {low:g} must be below --clip_percentile_high {high:g}")
    if options.epsilon and options.max_block_ratio <= 1 - options.epsilon:
        raise ValueError(
            f"--epsilon {options.epsilon:g} cannot act: with --max_block_ratio {options.max_block_ratio:g} layers "
            f"keep at least {1 - options.max_block_ratio:g} of themselves; raise one of them"
        )
    options.measures = set() if options.run_evaluation == ["none"] else set(options.run_evaluation)
    if options.eval_tasks:
        options.measures.add("tasks")
    options.tasks = options.eval_tasks or ([DEFAULT_TASK] if "tasks" in options.measures else [])
    options.eval_datasets = options.eval_datasets or [options.dataset]
    options.cache_dir = cache_folder(options.cache_dir)
    if options.export and options.no_save_model:
        raise ValueError("--export needs the saved model: leave --no_save_model out")
    options.measures_on_text = options.plan is None and (
        options.importance_method != "magnitude"
        or options.temperature > 0
        or options.remedy == "auto"
        or _tries(options)
    )
    options.reconstruct = options.reconstruct or ("least_squares" if _repairs_unasked(options) else "none")
    options.reconstructs = options.reconstruct != "none" and not options.dry_run
    if options.reconstruct_modules == "all" and options.reconstruct_target == "pruned":
        raise ValueError(
            "--reconstruct_modules all needs the dense stream, which --reconstruct_target pruned never runs: use "
            "--reconstruct_modules outputs, or another target"
        )
    options.reconstruct_modules = options.reconstruct_modules or (
        "outputs" if options.reconstruct_target == "pruned" else "all"
    )
    if options.reconstructs and options.num_samples < 2:
        raise ValueError(
            f"--reconstruct {options.reconstruct} holds a window out to decide by: --num_samples {options.num_samples} "
            "is too few, use 2 or more"
        )
    if options.plan is None:
        _check_allocation(options)
    if options.low_memory:
        _check_low_memory(options)


def _repairs_unasked(options: argparse.Namespace) -> bool:
    """Where another step holds the model and reads the calibration text anyway, and there is a window to hold out."""
    if options.low_memory or options.num_samples < 2:
        return False
    if options.plan is not None:
        return "ppl" in options.measures and options.dataset in options.eval_datasets
    return bool(options.measures_on_text)


def _tries(options: argparse.Namespace) -> bool:
    """Whether plans, or blocks of one, are measured on calibration text before surgery."""
    in_rounds = options.rounds > 1 and options.importance_method != "magnitude"
    return bool(options.protect != "none" or options.allocate == "searched" or in_rounds)


def _check_allocation(options: argparse.Namespace) -> None:
    """What measures blocks one by one moves the budget between them, and that needs widths of their own."""
    if options.rounds > 1 and options.epsilon:
        raise ValueError(
            f"--rounds {options.rounds} takes groups, and --epsilon {options.epsilon:g} whole layers: leave one out"
        )
    if options.rounds > 1 and options.target == "stock":
        raise ValueError(
            f"--rounds {options.rounds} keeps gone what went before, and --target stock chooses equal widths anew: "
            "leave one out"
        )
    if options.allocate == "searched" and options.target == "stock":
        raise ValueError(
            "--allocate searched gives every block its own share, and --target stock gives all layers the same widths: "
            "leave one out"
        )
    if options.allocate == "searched" and options.epsilon:
        raise ValueError(
            f"--allocate searched takes groups, and --epsilon {options.epsilon:g} whole layers: leave one out"
        )
    if options.allocate == "searched" and options.protect == "measured":
        raise ValueError(
            "--allocate searched measures every block itself, and --protect measured would cap what it chose: "
            "leave one out"
        )
    if options.protect == "measured" and options.target == "stock":
        raise ValueError(
            "--protect measured caps single blocks, and --target stock gives all layers the same widths: leave one out"
        )


def _check_low_memory(options: argparse.Namespace) -> None:
    """Without the model in memory nothing can be run: no gradients, no activations, no evaluation."""
    if options.plan is None and (options.importance_method != "magnitude" or options.temperature):
        raise ValueError("--low_memory needs --importance_method magnitude with --temperature 0, or --plan FILE")
    if options.remedy == "auto" and options.plan is None:
        raise ValueError("--low_memory runs no model, and --remedy auto tries plans on it: leave one of them out")
    tried = (
        ("protect", options.protect, "none"),
        ("allocate", options.allocate, "global"),
        ("rounds", options.rounds, 1),
    )
    for name, value, off in tried:
        if value != off and options.plan is None:
            raise ValueError(f"--low_memory runs no model, and --{name} {value} measures on it: leave one of them out")
    if options.measures:
        raise ValueError("--low_memory evaluates nothing: add --run_evaluation none")
    if options.reconstruct != "none":
        raise ValueError(
            f"--low_memory runs no layer to refit: leave out --reconstruct {options.reconstruct}, or --low_memory"
        )
    if options.device not in ("auto", "cpu"):
        raise ValueError(f"--low_memory works on the CPU, not on --device {options.device}: leave one of them out")


def idle_options(options: argparse.Namespace) -> list[str]:
    """One sentence for each option that was given but cannot act next to the others."""
    taylor = options.importance_method.startswith("taylor")
    replay, auto = options.plan is not None, options.remedy == "auto"
    corrects = options.temperature > 0 or auto
    needs_text, repairs = options.measures_on_text, options.reconstructs
    batches = options.measures or corrects or (needs_text and (not taylor or _tries(options))) or repairs
    rules = [
        ({"norm_method"}, not options.enable_grad_norm, "needs --enable_grad_norm"),
        (
            {"clip_percentile_low", "clip_percentile_high"},
            not (options.enable_grad_clip or auto),
            "needs --enable_grad_clip",
        ),
        ({"tau", "prior", "prior_samples"}, not corrects, "needs --temperature above 0"),
        ({"gradient_reduction"}, not taylor, "acts on taylor and taylor_2nd only"),
        (_CALIBRATES, not (needs_text or replay or repairs), "acts where text is measured, not on magnitude"),
        ({"prior_samples"}, options.prior_samples > options.num_samples, "is cut to --num_samples"),
        ({"minutes"}, options.allocate != "searched", "needs --allocate searched"),
        ({"rounds"}, options.importance_method == "magnitude", "does not act on magnitude, which stays as it was"),
        ({"batch_size"}, not batches, "does not act here: taylor takes one sequence a backward pass, magnitude none"),
        ({"eval_task_path"}, not options.tasks, "needs --eval_tasks or --run_evaluation tasks"),
        (
            {"eval_datasets", "eval_seq_len", "eval_samples"},
            "ppl" not in options.measures,
            "needs --run_evaluation ppl",
        ),
        ({"verify"}, options.no_save_model, "needs the saved model"),
        (
            _DELIVERS,
            options.dry_run,
            "does not act with --dry_run, which prunes nothing",
        ),
        (
            {"reconstruct_target", "reconstruct_text", "reconstruct_modules"},
            options.reconstruct == "none",
            "needs --reconstruct least_squares",
        ),
        ({"cache_dir"}, replay and "ppl" not in options.measures, "does not act with --plan, where nothing is kept"),
        (_DECIDES_THE_PLAN, replay, "does not act with --plan, which holds the decision already"),
        (_CALIBRATES, replay and not repairs, "does not act with --plan, which holds the decision already"),
    ]
    return [f"--{name} {why}" for names, idle, why in rules if idle for name in sorted(names & options.given)]


_DELIVERS = {
    *("no_save_model", "max_shard_size", "verify", "no_verify", "export"),
    *("reconstruct", "reconstruct_target", "reconstruct_text", "reconstruct_modules"),
}
_CALIBRATES = {"num_samples", "seq_len"}
_DECIDES_THE_PLAN = {
    *("pruning_ratio", "ratio_of", "importance_method", "gradient_reduction", "freeze_first_n_layers"),
    *("freeze_last_n_layers", "max_block_ratio", "min_kv_heads", "round_to", "epsilon", "enable_grad_clip"),
    *("clip_percentile_low", "clip_percentile_high", "enable_grad_norm", "norm_method", "temperature", "tau"),
    *("prior", "prior_samples", "remedy", "protect", "allocate", "minutes", "rounds"),
}
