"""Everything a run was asked, as frozen values. Complete after ``complete``: nothing is filled in or changed later.

A field is named as the option that sets it (``--pruning_ratio`` is ``settings.budget.pruning_ratio``), so that the
command line, ``gp.prune(...)`` and run.json use one word for one thing. What only the model can say (``round_to``,
``eval_seq_len``) is None until ``Session`` resolves it, in a new value.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from core.criteria import CRITERIA, Criterion
from core.memory import bytes_of
from core.names import SELF
from core.sources import Source, sources_of
from core.transforms import Transforms

READ_TEXT = "wikitext2"
DEFAULT_TEXT = f"{READ_TEXT},{SELF}"
GPU_TOKENS, CPU_TOKENS = 8_000_000, 500_000  # to distil on, unless told otherwise


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and where and how it is computed. base_model: hub id, folder or ``demo``.

    gpu_memory: what tensors may take of a GPU, such as ``17GB``; None: all of it. What is no size: UsageError.
    engine: ``resident``, ``streamed``, ``sharded``, or ``auto``. scratch: a folder for what rests while weights come
    and go. low_memory: another word for ``streamed``.
    """

    base_model: str
    device: str = "auto"
    dtype: str = "auto"
    gpu_memory: str | None = None
    engine: str = "auto"
    scratch: Path | None = None
    low_memory: bool = False
    trust_remote_code: bool = False

    @property
    def gpu_memory_bytes(self) -> int | None:
        return None if self.gpu_memory is None else bytes_of(self.gpu_memory)

    def __post_init__(self) -> None:
        self.gpu_memory_bytes  # noqa: B018 - raises where it is no size


@dataclass(frozen=True)
class BudgetSettings:
    """How much goes: a fraction in (0, 1) of ``total`` or ``prunable`` parameters."""

    pruning_ratio: float = 0.2
    ratio_of: str = "total"


@dataclass(frozen=True)
class LimitSettings:
    """What stays whatever its score. round_to None: as the model's width suggests."""

    freeze_first_n_layers: int = 0
    freeze_last_n_layers: int = 0
    max_block_ratio: float = 1.0
    min_kv_heads: int = 1
    round_to: int | None = None
    epsilon: float = 0.0
    target: str = "hf"
    tensor_parallel: int = 1


@dataclass(frozen=True)
class ScoreSettings:
    """How groups are ranked: criterion, transforms, correction by a prior. A transform that cannot work: UsageError."""

    importance_method: str = "obs"
    gradient_reduction: str = "sequence"
    enable_grad_clip: bool = False
    clip_percentile_low: float = 5.0
    clip_percentile_high: float = 95.0
    enable_grad_norm: bool = False
    norm_method: str = "log"
    temperature: float = 0.0
    tau: float | Literal["auto"] = 0.0
    prior: str = "loss"
    prior_samples: int = 32

    @cached_property
    def transforms(self) -> Transforms:
        return Transforms(
            clip=self.enable_grad_clip,
            clip_low=self.clip_percentile_low,
            clip_high=self.clip_percentile_high,
            normalise=self.norm_method if self.enable_grad_norm else None,
            temperature=self.temperature,
            tau=self.tau,
        )

    @property
    def criterion(self) -> Criterion:
        """Properties of the importance method."""
        return CRITERIA[self.importance_method]

    def __post_init__(self) -> None:
        self.transforms  # noqa: B018 - raises where it cannot work


@dataclass(frozen=True)
class RefinementSettings:
    """What may propose another plan after the first. minutes: wall-clock, for ``allocate`` searched."""

    remedy: str = "advise"
    protect: str = "none"
    allocate: str = "global"
    minutes: float = 10.0
    rounds: int = 1


@dataclass(frozen=True)
class CalibrationSettings:
    """The text that is measured and refitted on: N windows of T tokens. batch_size None: as many as fit.

    dataset: one text or a mixture. What cannot be read as one: UsageError.
    """

    dataset: str = DEFAULT_TEXT
    text_column: str = "text"
    num_samples: int = 128
    seq_len: int = 256
    batch_size: int | None = None
    seed: int = 0

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The texts of ``dataset``, each with its share."""
        return sources_of(self.dataset)

    def __post_init__(self) -> None:
        self.sources  # noqa: B018 - raises where a mixture cannot be read


@dataclass(frozen=True)
class RepairSettings:
    """How what is left is refitted to the dense model; ``reconstruct`` none: not at all."""

    reconstruct: str = "none"
    reconstruct_modules: str = "all"
    reconstruct_target: str = "stream"
    reconstruct_text: str = "mixed"


@dataclass(frozen=True)
class RecoverySettings:
    """How what is left is trained towards the dense model after the cut: RECOVERIES in any order, () for none.

    recover_tokens: that distillation trains on; None: as the device suggests. recover_lora: rank of adapters, None: all
    of the layers is trained. report_to: trackers that hear of it, by their names in transformers.
    """

    recover: tuple[str, ...] = ()
    recover_tokens: int | None = None
    recover_lora: int | None = None
    report_to: tuple[str, ...] = ()

    @property
    def distills(self) -> bool:
        return "distill" in self.recover

    def tokens_on(self, device_type: str) -> int:
        """To distil on. device_type: as torch names it, ``cpu`` or another."""
        return self.recover_tokens or (CPU_TOKENS if device_type == "cpu" else GPU_TOKENS)

    @property
    def named(self) -> str:
        """As the command line writes them."""
        return ",".join(self.recover) or "none"


@dataclass(frozen=True)
class OutputSettings:
    """What is written and where. output None: nowhere (Python only). cache_dir None: no cache."""

    output: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    plan: Path | None = None
    max_shard_size: str = "5GB"
    verify: bool = True
    cache_dir: Path | None = None
    export: str | None = None
    no_save_model: bool = False


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured before and after. eval_elsewhere: a text of another kind than the calibration's that is
    evaluated as well; none for none. eval_seq_len None: 2048, or the model's context; eval_samples None: all."""

    run_evaluation: tuple[str, ...] = ("ppl", "generation")
    eval_datasets: tuple[str, ...] = ()
    eval_elsewhere: str = "none"
    eval_seq_len: int | None = None
    eval_samples: int | None = None
    eval_tasks: tuple[str, ...] = ()
    eval_task_path: Path | None = None

    @property
    def perplexity_on(self) -> tuple[str, ...]:
        """Datasets whose perplexity, and distance from the dense model, is measured."""
        if "ppl" not in self.run_evaluation:
            return ()
        return (*self.eval_datasets, *({self.eval_elsewhere} - {"none", *self.eval_datasets}))

    @property
    def texts(self) -> tuple[str, ...]:
        """Datasets whose held-out text is read: those, or, for the beginnings of what a model writes alone, those that
        are asked for."""
        return self.perplexity_on or (self.eval_datasets if "generation" in self.run_evaluation else ())


@dataclass(frozen=True)
class Settings:
    """A whole run, in the order of ``--help``. if_streamed: what takes the place of these where the model has to be
    streamed, so that it cannot write its half of the default text; None: nothing does."""

    model: ModelSettings
    budget: BudgetSettings = BudgetSettings()
    scores: ScoreSettings = ScoreSettings()
    limits: LimitSettings = LimitSettings()
    refinement: RefinementSettings = RefinementSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    repair: RepairSettings = RepairSettings()
    recovery: RecoverySettings = RecoverySettings()
    output: OutputSettings = field(default_factory=OutputSettings)
    evaluation: EvaluationSettings = EvaluationSettings()
    if_streamed: "Settings | None" = field(default=None, repr=False)

    @property
    def replays(self) -> bool:
        """Whether a saved plan is carried out, so that nothing is measured to rank by."""
        return self.output.plan is not None

    @property
    def ranks_on_text(self) -> bool:
        """Whether what decides the plan is measured on calibration text."""
        return not self.replays and (
            self.criterion.reads_text
            or self.scores.transforms.temperature > 0
            or self.refinement.remedy == "auto"
            or self.tries_plans
        )

    @property
    def tries_plans(self) -> bool:
        """Whether plans, or blocks of one, are measured on judging text before surgery."""
        asked = self.refinement
        in_rounds = asked.rounds > 1 and self.criterion.reads_text
        return asked.protect != "none" or asked.allocate == "searched" or in_rounds

    @property
    def judges(self) -> bool:
        """Whether judging windows are needed: ``tries_plans``, or remedies are tried."""
        measured = self.tries_plans or self.refinement.remedy == "auto"
        return measured and not self.replays

    @property
    def repairs(self) -> bool:
        return self.repair.reconstruct != "none" and not self.output.dry_run

    @property
    def recovers(self) -> bool:
        return bool(self.recovery.recover) and not self.output.dry_run

    @property
    def reads_calibration(self) -> bool:
        return self.ranks_on_text or self.repairs or self.recovers

    @property
    def keeps_nothing(self) -> bool:
        """Whether nothing is measured, written or trained that the cache could keep for another run."""
        writes = SELF in (*self.calibrating, *self.evaluation.texts)
        trains = self.recovers and self.recovery.distills
        return self.replays and "ppl" not in self.evaluation.run_evaluation and not (writes or trains)

    @property
    def calibrating(self) -> tuple[str, ...]:
        """Texts that calibrate."""
        return tuple(source.name for source in self.calibration.sources) if self.reads_calibration else ()

    @property
    def needs_whole_model(self) -> str | None:
        """What is asked, as an option, that makes the model write or answer one thing at a time, or trains it whole;
        None: nothing. A model whose weights come and go cannot do it. ``generation``, which nobody need ask for, is
        left out instead."""
        measures = [measure for measure in self.evaluation.run_evaluation if measure not in ("ppl", "generation")]
        if measures:
            return f"--run_evaluation {measures[0]}"
        if SELF in (*self.calibrating, *self.evaluation.texts):
            return f"the text {SELF}"
        return "--recover distill" if self.recovery.distills else None

    @property
    def criterion(self) -> Criterion:
        return self.scores.criterion

    def resolved(self, *, round_to: int, eval_seq_len: int) -> "Settings":
        """The same with what only the model can say."""
        return replace(
            self,
            limits=replace(self.limits, round_to=round_to),
            evaluation=replace(self.evaluation, eval_seq_len=eval_seq_len),
        )

    def record(self) -> dict[str, Any]:
        """Option -> value, flat, as run.json keeps it: paths as text, ``none`` for an empty list of steps."""
        values: dict[str, Any] = {}
        for name in SECTIONS:
            section = getattr(self, name)
            values |= {option.name: getattr(section, option.name) for option in fields(section)}
        values |= {name: values[name] or ("none",) for name in ("recover", "report_to", "run_evaluation")}
        return {name: _plain(value) for name, value in values.items()}


SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "budget": BudgetSettings,
    "scores": ScoreSettings,
    "limits": LimitSettings,
    "refinement": RefinementSettings,
    "calibration": CalibrationSettings,
    "repair": RepairSettings,
    "recovery": RecoverySettings,
    "output": OutputSettings,
    "evaluation": EvaluationSettings,
}
OPTIONS = tuple(option.name for section in SECTIONS.values() for option in fields(section))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
