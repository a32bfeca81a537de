"""One model being worked on: checked settings, its source, device, windows, the dense model on demand, the cache."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from calibration import check_dataset
from core import ranks
from core.engine import engine_of
from core.errors import UsageError
from core.families import Family
from core.groups import Architecture
from core.measured import Importance
from core.memory import bytes_text, capped
from core.names import SELF
from core.resting import check_scratch
from core.say import note
from core.windows import TokenWindows
from evaluation.catalogue import check_tasks
from evaluation.distance import DenseStates
from evaluation.fit import check_fit
from importance.from_disk import streamed_magnitude
from importance.measure import measure_importance
from models.gguf import check_gguf
from models.in_memory import source_of
from models.loading import ModelSource, check_context, choose_device, choose_dtype, load_model
from models.rounding import check_finite, check_range
from models.stock import possible_kv_widths
from models.travel import dense_folder
from pruning.budget import budget_params, requested_params
from pruning.limits import Limits
from pruning.plan_file import read_plan
from pruning.recovery.packages import check_packages
from pruning.repair import RepairSettings
from pruning.targets import check_plan, default_round_to, explain, limits_for
from run.cache_keys import common_key
from run.checked_model import checked_model
from run.engine_choice import EngineChoice, choose_engine
from run.folder import RunFolder
from run.judging import JUDGING_WINDOWS, Judge
from run.measurement_cache import MeasurementCache
from run.record import Stages
from run.self_windows import beginnings_of, with_judging, with_written
from run.settings import LimitSettings, ScoreSettings, Settings
from run.streamed_model import Streaming, streamed_dense
from run.windows import TextWindows, Windows, read_windows, wanted_windows


class Session:
    """Everything stages share while one model is worked on. Nothing here changes a weight.

    settings: as asked, with what only the model can say. asked: as asked. source: the checked model. device, dtype:
    where and in what it is computed. engine: how its weights come there. saved_dtype: in what checkpoints are written.
    limits: what the settings and the target rule out. replayed: a saved plan, or None. calibration: windows to measure
    and refit on, None where nothing does. judging: windows that importance did not see, for plans on trial, None where
    none is tried. evaluation: windows by dataset. dense_states: what is kept of the dense model's predictions there,
    once it was evaluated. warnings: what the run goes without, for run.json. when_complete: what is left to do once the
    results are in place. draws: whether pictures can be drawn here.
    """

    def __init__(
        self, settings: Settings, *, model: Any = None, tokenizer: Any = None, folder: RunFolder | None = None
    ) -> None:
        """Check all that needs no weights and no tokens; PruningError with one line for the first problem.

        model, tokenizer: where the caller has them in memory; the model is left as found. folder: claimed for this
        run's results; None where nothing is written.
        """
        self.asked, self.stages, self.given = settings, Stages(), model
        self.warnings: list[str] = []
        self.when_complete: list[Callable[[], None]] = []
        self.cache = self._cache(settings)
        with self.stages("check", quietly=True):
            self.source = source = self._source(settings, model, tokenizer)
            self.device = (
                choose_device(settings.model.device, ranks.here()) if model is None else next(model.parameters()).device
            )
            self.dtype = choose_dtype(settings.model.dtype, self.device, source.stored_dtype)
            if model is not None:
                self.dtype = model.dtype
            self.saved_dtype = source.stored_dtype if settings.model.dtype == "auto" else self.dtype
            self.engine = EngineChoice("resident", "")
            if model is None and folder is not None:
                self.engine = choose_engine(settings, source, self.device, self.dtype)
            if self.engine.streams and settings.if_streamed is not None:
                note(
                    f"weights are {self.engine.name}, so the model cannot write its half of the calibration text: "
                    f"{settings.if_streamed.calibration.dataset} alone calibrates"
                )
                settings = settings.if_streamed
            self.settings = settings.resolved(
                round_to=settings.limits.round_to or default_round_to(source.architecture),
                eval_seq_len=settings.evaluation.eval_seq_len or min(2048, source.context),
            )
            if not self.engine.streams:
                check_gpu_memory(settings, source, self.device, self.dtype)
            self.limits, shapes = limits_of(source, self.settings.limits)
            self.replayed = read_plan(settings.output.plan, source.architecture) if settings.output.plan else None
            self._check(shapes)
        self.run_folder = folder
        self.dense_states: dict[str, DenseStates] = {}
        self._windows, self._texts, self._judges = Windows(), TextWindows(), 0
        self.draws = True
        self._dense: Any = None

    def _check(self, shapes: dict[str, Any]) -> None:
        settings, source = self.settings, self.source
        if settings.model.scratch is not None:
            check_scratch(settings.model.scratch)
        if self.replayed is not None:
            check_plan(settings.limits.target, self.replayed, **shapes)
        else:
            budget_params(source.architecture, settings.budget.pruning_ratio, settings.budget.ratio_of, self.limits)
        if settings.reads_calibration:
            check_context("--seq_len", settings.calibration.seq_len, source.context)
        assert settings.evaluation.eval_seq_len is not None
        check_context("--eval_seq_len", settings.evaluation.eval_seq_len, source.context)
        for name in dict.fromkeys([*wanted_windows(settings, 0), *settings.evaluation.texts]):
            check_dataset(name, settings.calibration.text_column)
            if name == SELF:
                beginnings_of(self)  # says what is wrong with a chat template
        if settings.recovers:
            asked = settings.recovery
            check_packages(distills=asked.distills, lora=asked.recover_lora is not None, report_to=asked.report_to)
        tasks, tasks_at = list(settings.evaluation.eval_tasks), settings.evaluation.eval_task_path
        check_tasks(tasks, tasks_at)
        if tasks:
            check_fit(tasks, tasks_at, source.tokenizer, source.config)
        if settings.output.export == "gguf":
            check_gguf(source)

    def read_windows(self, *, judging: bool | None = None) -> None:
        """Draw calibration, judging and evaluation windows, each where the settings need it, from one reading of each
        text. judging: whether there are judging windows; None: as the settings need."""
        self.read_texts(judging=judging)
        self.write_windows()

    def read_texts(self, *, judging: bool | None = None) -> None:
        """The first half of ``read_windows``, for which no weight is loaded: texts that exist."""
        self._judges = JUDGING_WINDOWS * (self.settings.judges if judging is None else judging)
        self._texts = read_windows(self.settings, self.source, self._judges, self.cache)

    def write_windows(self) -> None:
        """The second half: what the dense model writes itself, where that is asked for; to judge by, where the settings
        say that plans are judged."""
        self._texts = with_written(self, self._texts, self._judges if self.settings.judges else 0)
        self._windows = self._texts.mixed(self.settings)

    @property
    def calibration(self) -> TokenWindows | None:
        """Windows to measure and refit on; None where nothing does."""
        return self._windows.calibration

    @property
    def evaluation(self) -> dict[str, TokenWindows]:
        """Windows by dataset."""
        return self._windows.evaluation

    @property
    def written(self) -> TokenWindows | None:
        """Calibration windows that the model wrote itself; None where it wrote none."""
        return self._windows.written

    @property
    def judging(self) -> TokenWindows:
        """Calibration text that importance did not see, as far as the text is long enough."""
        texts = with_judging(self, self._texts, self._judges)
        if texts is not self._texts:
            self._texts, self._windows = texts, texts.mixed(self.settings)
        assert self._windows.judging is not None, "Settings.judges, or read_windows(judging=True)"
        return self._windows.judging

    @property
    def windows(self) -> dict[str, TokenWindows]:
        """By name, those that were drawn for calibration and evaluation."""
        windows = {f"evaluation {name}": item for name, item in self.evaluation.items()}
        return windows if self.calibration is None else windows | {"calibration": self.calibration}

    @property
    def writes(self) -> bool:
        """Whether this process writes results: of several that work on one run, the first."""
        return ranks.is_first()

    @property
    def folder(self) -> Path:
        """Where stages write; it is put in place of ``--output`` when everything is ready."""
        assert self.run_folder is not None, "a session without a folder writes nothing"
        return self.run_folder.staging

    @property
    def planned_removal(self) -> int:
        """Parameters that will go at most."""
        if self.replayed is not None:
            return self.replayed.removed_params
        budget = self.settings.budget
        return requested_params(self.architecture, budget.pruning_ratio, budget.ratio_of)

    @cached_property
    def base_folder(self) -> Path | None:
        """Where the dense model's own files lie, for those that travel; None for a model that was in memory."""
        if self.given is not None:
            return None
        return dense_folder(self.source.path, getattr(self.source.config, "_commit_hash", None))

    @property
    def family(self) -> Family:
        return self.source.family

    @property
    def architecture(self) -> Architecture:
        return self.source.architecture

    @property
    def tokenizer(self) -> Any:
        return self.source.tokenizer

    @property
    def batch_size(self) -> int | None:
        return self.settings.calibration.batch_size

    @property
    def calibrated(self) -> TokenWindows:
        """The calibration windows of a run that has them."""
        assert self.calibration is not None, "Settings.reads_calibration"
        return self.calibration

    def _cache(self, settings: Settings) -> MeasurementCache:
        folder = settings.output.cache_dir
        if settings.keeps_nothing:
            folder = None
        if self.given is not None:
            folder = None
        if folder is not None and settings.model.trust_remote_code:
            note("there is no cache with --trust_remote_code: an entry cannot depend on a tokenizer's own Python")
            folder = None
        return MeasurementCache(
            folder, lambda: common_key(self.source, self.dtype, self.device), self.stages, self.warnings
        )

    def _source(self, settings: Settings, model: Any, tokenizer: Any) -> ModelSource:
        """The checked model of the settings, or the one that is in memory already. ModelError."""
        if model is not None:
            return source_of(model, tokenizer)
        return checked_model(settings.model.base_model, settings.model.trust_remote_code, self.cache)

    @property
    def streamed(self) -> bool:
        """Whether no process holds the model: its weights come and go, and are written one at a time."""
        return self.engine.streams

    @property
    def streaming(self) -> Streaming:
        # The folder may lie on another machine, that of the process that writes results.
        beside = self.folder if self.run_folder is not None and self.folder.is_dir() else None
        return Streaming(
            self.device,
            self.dtype,
            None if self.settings.model.dtype == "auto" else self.dtype,
            self.saved_dtype,
            self.settings.model.scratch,
            beside,
            sharded=self.engine.sharded,
        )

    @cached_property
    def judge(self) -> Judge:
        return Judge(self)

    def dense(self) -> Any:
        """The dense model, loaded when a stage first needs it; where it is streamed, empty until weights are needed."""
        if self._dense is None:
            self._dense = self.given
        if self._dense is None:
            with self.stages("open checkpoint" if self.streamed else "load model"):
                if self.streamed:
                    self._dense = streamed_dense(self.source, self.streaming)
                else:
                    self._dense = load_model(self.source, self.device, self.dtype)
                    check_finite(self._dense)
                    check_range(self._dense, self.saved_dtype)
        return self._dense

    def own_dense(self) -> Any:
        """The dense model to be written to: one that the caller brought is copied first, and the copy is worked on."""
        if self.given is not None and self.dense() is self.given:
            self._dense = copy.deepcopy(self.given).eval().requires_grad_(False)
        return self.dense()

    def take_dense(self) -> Any:
        """The same for the caller to use up; the next ``dense`` loads it again, or is the caller's own."""
        model, self._dense = self.own_dense(), None
        return model

    @property
    def holds_dense(self) -> bool:
        """Whether the dense model is in memory."""
        return self._dense is not None or self.given is not None

    def drop_dense(self) -> None:
        """Give its memory back; the next ``dense`` loads it again, or is the caller's own."""
        self._dense = None

    def measured_importance(self, scores: ScoreSettings) -> Importance:
        """Of the dense model as it is, hooks included; no cache has a say."""
        if self.streamed and scores.criterion.streams:
            return streamed_magnitude(engine_of(self.dense()).tensors, self.family, self.architecture)
        return measure_importance(
            self.dense(),
            self.family,
            self.architecture,
            self.calibration,
            criterion=scores.importance_method,
            gradient_reduction=scores.gradient_reduction,
            batch_size=self.batch_size,
        )

    @property
    def repair(self) -> RepairSettings:
        """How the settings want what is left repaired."""
        asked = self.settings.repair
        return RepairSettings(
            target=asked.reconstruct_target,
            text=asked.reconstruct_text,
            modules=asked.reconstruct_modules,
            batch_size=self.batch_size,
            stored_dtype=self.saved_dtype,
        )

    @contextmanager
    def within_its_memory(self) -> Iterator[None]:
        """Inside, the session's GPU is the current one, and tensors take no more of it than ``--gpu_memory``."""
        current = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with current, capped(self.device, self.settings.model.gpu_memory_bytes):
            yield

    def describe(self) -> str:
        """For the console: the model, its size, where it is computed; a line for each restriction of the target."""
        shape, target = self.architecture, self.settings.limits.target
        lines = [] if self.replayed is not None else explain(target, shape, self.limits)
        headline = (
            f"{self.source.name}: {shape.model_type}, {shape.num_layers} layers, {shape.total_params:,} parameters "
            f"({shape.prunable_params:,} prunable), on {self.device} in {str(self.dtype).removeprefix('torch.')}"
            f"{self._of_memory()}"
        )
        return "\n".join([headline, *[self.engine.why] * bool(self.engine.why), *lines])

    def _of_memory(self) -> str:
        asked = self.settings.model.gpu_memory
        if asked is None:
            return ""
        return (
            f" within {asked}" if self.device.type == "cuda" else f" (--gpu_memory {asked} has an effect on a GPU only)"
        )


def check_gpu_memory(settings: Settings, source: ModelSource, device: torch.device, dtype: torch.dtype) -> None:
    """UsageError where ``--gpu_memory`` is not even enough for the weights."""
    most = settings.model.gpu_memory_bytes
    weights = source.architecture.total_params * dtype.itemsize
    if most is not None and device.type == "cuda" and most <= weights:
        raise UsageError(
            f"--gpu_memory {settings.model.gpu_memory} is no more than the weights take, {bytes_text(weights)} in "
            f"{str(dtype).removeprefix('torch.')}: name a larger size, or --device cpu"
        )


def limits_of(source: ModelSource, asked: LimitSettings) -> tuple[Limits, dict[str, Any]]:
    """The limits the settings and the target set, and what the target wants of shapes. asked: with round_to."""
    shapes: dict[str, Any] = {"tensor_parallel": asked.tensor_parallel}
    if asked.target == "stock":
        shapes["kv_widths"] = possible_kv_widths(source.config, source.family, source.architecture)
    limits = Limits(
        freeze_first=asked.freeze_first_n_layers,
        freeze_last=asked.freeze_last_n_layers,
        max_block_ratio=asked.max_block_ratio,
        min_kv_heads=asked.min_kv_heads,
        round_to=asked.round_to or 1,
        epsilon=asked.epsilon,
    )
    return limits_for(asked.target, source.architecture, limits, **shapes), shapes
