"""Global structured pruning of Hugging Face causal language models, from Python.

    import global_pruning as gp

    result = gp.prune("demo", ratio=0.2, dataset="pydoc", output="results/nb")   # everything the command does

    session = gp.open("demo", dataset="pydoc")                                     # or step by step
    scores = session.score("taylor", normalise="log")
    plan = session.plan(scores, ratio=0.3)                                         # cheap: many plans from one pass
    small = session.prune(plan)                                                    # repaired and cut
    session.save(small, "results/nb/model")                                        # saved and proved

Options carry the names of the command line (``docs/options.md``). Errors are ``PruningError`` and its kinds: one line
that names the value, the bound and the next step. Importing this module imports no torch; nothing that a call changes
in the process (seeds, warnings, logging, determinism) outlives it.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from global_pruning_rooms import find_our_rooms

find_our_rooms()

from core.errors import (  # noqa: E402 - our rooms are found first
    BudgetError,
    DataError,
    ModelError,
    NumericalError,
    OutputError,
    PlanError,
    PruningError,
    UsageError,
    VerificationError,
)
from core.say import Say, heard_by, note, say_on_stderr  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

    from core.measures import Importance, Prior
    from core.plan import PruningPlan
    from core.transforms import Transforms
    from diagnostics.findings.finding import Finding
    from run.result import Result
    from run.session import Session as RunSession

__all__ = [
    "BudgetError",
    "Check",
    "DataError",
    "ModelError",
    "NumericalError",
    "OutputError",
    "PlanError",
    "PruningError",
    "Scores",
    "Session",
    "UsageError",
    "VerificationError",
    "open",
    "prune",
    "silent",
]


def silent(line: str) -> None:
    """A ``say`` that hears nothing: ``gp.prune(..., say=gp.silent)``. Progress bars obey ``TQDM_DISABLE``."""


def prune(
    model: Any,
    *,
    ratio: float = 0.2,
    dataset: str | Path = "wikitext2",
    output: str | Path | None = None,
    tokenizer: Any = None,
    say: Say = say_on_stderr,
    **options: Any,
) -> "Result":
    """Do everything that the command does: measure, plan, explain, repair, cut, save, prove, evaluate, report.

    model: hub id, folder or ``demo``, or a transformers model in memory, which needs its ``tokenizer`` and is left as
    found. ratio: ``--pruning_ratio``. output: the folder for results; None: as the command chooses. say: hears what the
    command prints on the way. options: any other option of the command, by its name without dashes.
    Returns a ``Result``: ``.plan``, ``.findings``, ``.evaluation``, ``.perplexity``, ``.model``, ``.path``.
    Raises PruningError.
    """
    from cli.argv import argv_of
    from run_global_pruning import run

    asked = {"pruning_ratio": ratio, "dataset": dataset, "output": output, **options}
    settings = _settings(model, asked)
    given = None if isinstance(model, (str, Path)) else model
    with heard_by(say):
        return run(settings, argv=argv_of(settings), model=given, tokenizer=tokenizer)


def open(
    model: Any,
    *,
    dataset: str | Path = "wikitext2",
    tokenizer: Any = None,
    say: Say = say_on_stderr,
    **options: Any,
) -> "Session":
    """A model to work on step by step; its weights are loaded when they are first needed.

    Arguments as in ``prune``. options: those that say how to measure and repair (``device``, ``dtype``,
    ``num_samples``, ``seq_len``, ``seed``, ``batch_size``, ``reconstruct``, …). Raises PruningError.
    """
    from run.session import Session as RunSession

    settings = _settings(model, {"dataset": dataset, "run_evaluation": "none", **options})
    given = None if isinstance(model, (str, Path)) else model
    with heard_by(say), _surroundings(settings.calibration.seed):
        inner = RunSession(settings, model=given, tokenizer=tokenizer)
        for sentence in inner.source.notes:
            note(sentence)
        inner.read_windows(judging=True)
    return Session(inner, say)


@dataclass(frozen=True)
class Scores:
    """What ``Session.score`` measured, and the transforms to rank it under.

    values: float64 (G,), importance of every group in the order of ``plan.groups``; higher = keep.
    """

    importance: "Importance"
    prior: "Prior | None"
    transforms: "Transforms"
    method: str

    @property
    def values(self) -> "np.ndarray":
        return self.importance.values

    def __repr__(self) -> str:
        return f"Scores({self.method}, {len(self.values):,} groups, {self.transforms.flags or 'no transform'})"


@dataclass(frozen=True)
class Check:
    """What a plan costs on text that importance did not see, nothing cut.

    loss, dense_loss: nats per token. increase: their difference, mean over windows; standard_error: of that mean.
    """

    loss: float
    dense_loss: float
    increase: float
    standard_error: float
    num_windows: int

    def __repr__(self) -> str:
        return (
            f"{self.loss:.4f} nats/token, {self.increase:+.4f} ± {self.standard_error:.4f} against the dense model "
            f"({self.num_windows} windows)"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


class Session:
    """One model, worked on step by step. Plans are cheap: measure once, plan as often as you like."""

    def __init__(self, inner: "RunSession", say: Say) -> None:
        self._inner, self._say = inner, say

    def __repr__(self) -> str:
        return self._inner.describe()

    @property
    def model(self) -> Any:
        """The dense model, loaded where it is not yet. Stages leave it as found."""
        return self._do(self._inner.dense)

    @property
    def tokenizer(self) -> Any:
        return self._inner.tokenizer

    def score(
        self,
        method: str = "obs",
        *,
        normalise: str | None = None,
        clip: bool | tuple[float, float] = False,
        temperature: float = 0.0,
        tau: float | Literal["auto"] = 0.0,
        prior: str = "loss",
        prior_samples: int = 32,
        gradient_reduction: str = "sequence",
    ) -> Scores:
        """Measure importance, and a prior where ``temperature`` is above 0.

        method: ``--importance_method``. normalise: ``log``, ``minmax``, ``zscore``, ``sqrt`` or None. clip: percentiles
        of the whole model, or True for 5 and 95. Measurements are cached; other transforms cost nothing.
        """
        from core.criteria import CRITERIA
        from run.measurements import importance_of, prior_of
        from run.settings import ScoreSettings

        if method not in CRITERIA:
            raise UsageError(f"score({method!r}): needs one of {', '.join(CRITERIA)}")
        low, high = clip if isinstance(clip, tuple) else (5.0, 95.0)
        asked = ScoreSettings(
            importance_method=method,
            gradient_reduction=gradient_reduction,
            enable_grad_clip=bool(clip),
            clip_percentile_low=low,
            clip_percentile_high=high,
            enable_grad_norm=normalise is not None,
            norm_method=normalise or "log",
            temperature=temperature,
            tau=tau,
            prior=prior,
            prior_samples=prior_samples,
        )
        importance = self._do(lambda: importance_of(self._inner, asked))
        measured = self._do(lambda: prior_of(self._inner, asked)) if temperature > 0 else None
        return Scores(importance, measured, asked.transforms, method)

    def plan(self, scores: Scores, ratio: float = 0.2, *, ratio_of: str = "total", **limits: Any) -> "PruningPlan":
        """Rank all groups and choose which go. limits: ``max_block_ratio``, ``freeze_first_n_layers``,
        ``freeze_last_n_layers``, ``min_kv_heads``, ``round_to``, ``epsilon``, ``target``, ``tensor_parallel``.

        Raises BudgetError where the ratio is out of reach.
        """
        return self._ranked(scores, ratio, ratio_of, limits).plan

    def explain(self, scores: Scores, ratio: float = 0.2, *, ratio_of: str = "total", **limits: Any) -> list["Finding"]:
        """What the plan looks like and what to try next: findings, the most severe first."""
        from run.explain import diagnosis_of

        return list(diagnosis_of(self._inner, self._ranked(scores, ratio, ratio_of, limits)).findings)

    def check(self, plan: "PruningPlan") -> Check:
        """Held-out loss of a plan, repaired as ``prune`` would repair it; nothing is cut and the model left as
        found."""
        return self._do(lambda: self._check(plan))

    def prune(self, plan: "PruningPlan") -> Any:
        """Repair and cut: a transformers model of the plan's widths, in eval mode.

        The session's own model stays usable: weights come from its checkpoint again, or, where you brought the model,
        from a copy.
        """
        return self._do(lambda: self._prune(plan))

    def save(self, small: Any, path: str | Path, *, verify: bool = True, overwrite: bool = False) -> Path:
        """Write a model of ``prune``, trained on since or not, as a folder that ``from_pretrained`` loads; prove that
        the folder computes what ``small`` does. Raises OutputError, VerificationError."""
        from run.save_model import save_model

        return self._do(lambda: save_model(self._inner, small, Path(path), verify_it=verify, overwrite=overwrite))

    def _ranked(self, scores: Scores, ratio: float, ratio_of: str, limits: dict[str, Any]) -> Any:
        from pruning.targets import default_round_to
        from run.decision import rank
        from run.session import limits_of
        from run.settings import BudgetSettings, LimitSettings

        unknown = sorted(set(limits) - {option.name for option in fields(LimitSettings)})
        if unknown:
            raise UsageError(f"plan({unknown[0]}=...): limits are {', '.join(f.name for f in fields(LimitSettings))}")
        round_to = limits.pop("round_to", None) or default_round_to(self._inner.architecture)
        asked = LimitSettings(**limits, round_to=round_to)
        return rank(
            self._inner.architecture,
            scores.importance,
            scores.prior,
            transforms=scores.transforms,
            limits=limits_of(self._inner.source, asked)[0],
            budget=BudgetSettings(ratio, ratio_of),
        )

    def _check(self, plan: "PruningPlan") -> Check:
        from core.plan import nothing_removed
        from run.judging import loss_difference

        judge = self._inner.judge
        loss, dense = judge.loss(plan, "plan"), judge.loss(nothing_removed(plan.architecture), "dense")
        difference = loss_difference(loss, dense)
        return Check(
            float(loss.mean()), float(dense.mean()), difference["mean"], difference["standard_error"], len(loss)
        )

    def _prune(self, plan: "PruningPlan") -> Any:
        from run.deliver import cut_model, repair_model

        model = self._inner.take_dense()
        if self._inner.settings.repairs and not plan.keep.all():
            repair_model(self._inner, model, plan)
        return cut_model(model, self._inner.family, plan, stock=False)

    def _do(self, step: Callable[[], Any]) -> Any:
        seed = self._inner.settings.calibration.seed
        with heard_by(self._say), _surroundings(seed), self._inner.within_its_memory():
            return step()


def _settings(model: Any, asked: dict[str, Any]) -> Any:
    from run.complete import complete

    if isinstance(model, (str, Path)):
        name = str(model)
    else:
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
    return complete({"base_model": name, **asked})


def _surroundings(seed: int) -> Any:
    from run.surroundings import surroundings

    return surroundings(seed)
