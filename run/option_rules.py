"""Settings beside one another, as two tables: combinations that cannot work, and options that cannot act."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import NamedTuple

from core.errors import UsageError
from core.transforms import Remedy
from run.settings import Settings

Test = Callable[[Settings], bool]


class Conflict(NamedTuple):
    """Settings that cannot work. message: a template; ``{s}`` is the settings."""

    when: Test
    message: str


class Idle(NamedTuple):
    """Options that cannot act beside the others. why: what follows the option's name in the note."""

    names: tuple[str, ...]
    when: Test
    why: str


def _searched(s: Settings) -> bool:
    return s.refinement.allocate == "searched" and not s.replays


def _capped(s: Settings) -> bool:
    return s.refinement.protect == "measured" and not s.replays


def _in_rounds(s: Settings) -> bool:
    return s.refinement.rounds > 1 and not s.replays


CONFLICTS = (
    Conflict(
        lambda s: bool(s.limits.epsilon) and s.limits.max_block_ratio <= 1 - s.limits.epsilon,
        "--epsilon {s.limits.epsilon:g} has no effect: with --max_block_ratio {s.limits.max_block_ratio:g} every layer "
        "keeps more than that; raise --max_block_ratio or --epsilon",
    ),
    Conflict(
        lambda s: bool(s.output.export) and s.output.no_save_model,
        "--export needs the saved model: leave --no_save_model out",
    ),
    Conflict(
        lambda s: s.repair.reconstruct_modules == "all" and s.repair.reconstruct_target == "pruned",
        "--reconstruct_modules all needs the dense stream, which --reconstruct_target pruned never runs: use "
        "--reconstruct_modules outputs, or another target",
    ),
    Conflict(
        lambda s: s.repairs and s.calibration.num_samples < 2,
        "--reconstruct {s.repair.reconstruct} needs one window to decide by and one to fit: --num_samples "
        "{s.calibration.num_samples} is too few, use 2 or more",
    ),
    Conflict(
        lambda s: s.recovers and s.calibration.num_samples < 2,
        "--recover {s.recovery.named} needs one window to decide by and one to train on: --num_samples "
        "{s.calibration.num_samples} is too few, use 2 or more",
    ),
    Conflict(
        lambda s: _in_rounds(s) and bool(s.limits.epsilon),
        "--rounds {s.refinement.rounds} removes groups and --epsilon {s.limits.epsilon:g} removes whole layers; they "
        "cannot be combined: leave one out",
    ),
    Conflict(
        lambda s: _in_rounds(s) and s.limits.target == "stock",
        "--rounds {s.refinement.rounds} never restores a removed group, and --target stock chooses equal widths "
        "again; they cannot be combined: leave one out",
    ),
    Conflict(
        lambda s: _searched(s) and s.limits.target == "stock",
        "--allocate searched gives every block its own share, and --target stock gives all layers the same widths: "
        "leave one out",
    ),
    Conflict(
        lambda s: _searched(s) and bool(s.limits.epsilon),
        "--allocate searched removes groups and --epsilon {s.limits.epsilon:g} removes whole layers; they cannot be "
        "combined: leave one out",
    ),
    Conflict(
        lambda s: _searched(s) and _capped(s),
        "--allocate searched measures every block itself, and --protect measured would cap what it chose: leave one "
        "out",
    ),
    Conflict(
        lambda s: _capped(s) and s.limits.target == "stock",
        "--protect measured caps single blocks, and --target stock gives all layers the same widths: leave one out",
    ),
    Conflict(
        lambda s: s.model.low_memory and s.model.engine != "streamed",
        "--low_memory is another word for --engine streamed, and --engine is {s.model.engine}: leave one of them out",
    ),
    Conflict(
        lambda s: s.model.engine in ("streamed", "sharded") and s.needs_whole_model is not None,
        "{s.needs_whole_model} needs the whole model, and --engine {s.model.engine} runs a layer at a time: leave one "
        "of them out",
    ),
)


def refuse_conflicts(settings: Settings) -> None:
    """Raise UsageError, one line, for the first combination that cannot work."""
    for conflict in CONFLICTS:
        if conflict.when(settings):
            raise UsageError(conflict.message.format(s=settings))


def refusal(settings: Settings, remedy: Remedy) -> str | None:
    """Why the same run with this remedy on it would be refused for its other settings; None where it would not."""
    try:
        refuse_conflicts(remedied(settings, remedy))
    except UsageError as error:
        return str(error)
    return None


def remedied(settings: Settings, remedy: Remedy) -> Settings:
    """The settings with a remedy. UsageError where its values cannot work at all."""
    scores, limits, refinement = settings.scores, settings.limits, settings.refinement
    calibration, repair, recovery = settings.calibration, settings.repair, settings.recovery
    acting = remedy.applied_to(scores.transforms)
    return replace(
        settings,
        scores=replace(
            scores,
            importance_method=remedy.importance_method or scores.importance_method,
            enable_grad_clip=acting.clip,
            clip_percentile_low=acting.clip_low,
            clip_percentile_high=acting.clip_high,
            enable_grad_norm=acting.normalise is not None,
            norm_method=acting.normalise or scores.norm_method,
            temperature=acting.temperature,
            tau=acting.tau,
        ),
        limits=replace(limits, max_block_ratio=remedy.max_block_ratio or limits.max_block_ratio),
        refinement=replace(refinement, protect=remedy.protect or refinement.protect),
        calibration=replace(
            calibration,
            num_samples=remedy.num_samples or calibration.num_samples,
            dataset=remedy.dataset or calibration.dataset,
        ),
        repair=replace(repair, reconstruct=remedy.reconstruct or repair.reconstruct),
        recovery=replace(
            recovery,
            recover=tuple(remedy.recover.split(",")) if remedy.recover else recovery.recover,
            recover_tokens=remedy.recover_tokens or recovery.recover_tokens,
        ),
    )


def _corrects(s: Settings) -> bool:
    return s.scores.temperature > 0 or s.refinement.remedy == "auto"


def _batches(s: Settings) -> bool:
    """Whether several windows are ever run at once."""
    one_by_one = s.criterion.uses_gradient_reduction and s.scores.gradient_reduction == "sum"
    ranks = s.ranks_on_text and (not one_by_one or s.tries_plans)
    return bool(s.evaluation.run_evaluation) or _corrects(s) or ranks or s.repairs or s.recovers


_CALIBRATES = ("num_samples", "seq_len")
_REPAIRS = ("reconstruct_target", "reconstruct_text", "reconstruct_modules")
_DISTILS = ("recover_tokens", "recover_lora", "report_to")
_RECOVERS = ("recover", *_DISTILS)
_DELIVERS = ("no_save_model", "max_shard_size", "verify", "no_verify", "export", "reconstruct", *_REPAIRS, *_RECOVERS)
_DECIDES_THE_PLAN = (
    *("pruning_ratio", "ratio_of", "importance_method", "gradient_reduction", "freeze_first_n_layers"),
    *("freeze_last_n_layers", "max_block_ratio", "min_kv_heads", "round_to", "epsilon", "enable_grad_clip"),
    *("clip_percentile_low", "clip_percentile_high", "enable_grad_norm", "norm_method", "temperature", "tau"),
    *("prior", "prior_samples", "remedy", "protect", "allocate", "minutes", "rounds"),
)
IDLE = (
    Idle(("norm_method",), lambda s: not s.scores.enable_grad_norm, "needs --enable_grad_norm"),
    Idle(
        ("clip_percentile_low", "clip_percentile_high"),
        lambda s: not s.scores.enable_grad_clip and s.refinement.remedy != "auto",
        "needs --enable_grad_clip",
    ),
    Idle(("tau", "prior", "prior_samples"), lambda s: not _corrects(s), "needs --temperature above 0"),
    Idle(
        ("gradient_reduction",),
        lambda s: not s.criterion.uses_gradient_reduction,
        "works with taylor and taylor_2nd only",
    ),
    Idle(
        _CALIBRATES,
        lambda s: not (s.reads_calibration or s.replays),
        "has no effect with magnitude, which reads no text",
    ),
    Idle(
        ("prior_samples",), lambda s: s.scores.prior_samples > s.calibration.num_samples, "is reduced to --num_samples"
    ),
    Idle(("minutes",), lambda s: s.refinement.allocate != "searched", "needs --allocate searched"),
    Idle(
        ("rounds",),
        lambda s: not s.criterion.reads_text,
        "has no effect with magnitude, which is the same in every round",
    ),
    Idle(
        ("batch_size",),
        lambda s: not _batches(s),
        "has no effect here: --gradient_reduction sum takes one sequence per backward pass, and magnitude reads none",
    ),
    Idle(
        ("gpu_memory",),
        lambda s: s.model.device == "cpu",
        "has an effect on a GPU only",
    ),
    Idle(("scratch",), lambda s: s.model.engine == "resident", "has an effect only where weights are streamed"),
    Idle(("eval_task_path",), lambda s: not s.evaluation.eval_tasks, "needs --eval_tasks or --run_evaluation tasks"),
    Idle(
        ("eval_elsewhere",),
        lambda s: s.evaluation.eval_elsewhere != "none" and "ppl" not in s.evaluation.run_evaluation,
        "needs --run_evaluation ppl",
    ),
    Idle(
        ("eval_datasets", "eval_seq_len", "eval_samples"),
        lambda s: not s.evaluation.texts,
        "needs --run_evaluation ppl or generation",
    ),
    Idle(("verify",), lambda s: s.output.no_save_model, "needs the saved model"),
    Idle(_DELIVERS, lambda s: s.output.dry_run, "has no effect with --dry_run, which prunes nothing"),
    Idle(
        ("reconstruct_target", "reconstruct_modules"),
        lambda s: s.repair.reconstruct == "none",
        "needs --reconstruct least_squares",
    ),
    Idle(
        ("reconstruct_text",),
        lambda s: s.repair.reconstruct == "none" and "blocks" not in s.recovery.recover,
        "needs --reconstruct least_squares or --recover blocks",
    ),
    Idle(_DISTILS, lambda s: not s.recovery.distills, "needs --recover distill"),
    Idle(
        ("cache_dir",),
        lambda s: s.keeps_nothing,
        "has no effect with --plan, where there is nothing to keep",
    ),
    Idle(_DECIDES_THE_PLAN, lambda s: s.replays, "has no effect with --plan, which holds the decision already"),
    Idle(
        _CALIBRATES,
        lambda s: s.replays and not (s.repairs or s.recovers),
        "has no effect with --plan, which holds the decision already",
    ),
)


def idle_notes(settings: Settings, given: Collection[str]) -> list[str]:
    """One sentence for each option that was given but cannot act beside the others. given: option names."""
    return [
        f"--{name} {rule.why}" for rule in IDLE if rule.when(settings) for name in sorted(set(rule.names) & set(given))
    ]
