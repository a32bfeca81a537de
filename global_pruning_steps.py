"""What ``gp.open`` returns: a model worked on step by step. ``global_pruning`` is the module to import."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import DataError, PlanError, UsageError
from core.failures import in_the_programs_words
from core.say import Say, heard_by
from core.shown import html_table

if TYPE_CHECKING:
    import numpy as np

    from core.groups import Architecture
    from core.measured import Importance, Prior
    from core.plan import PruningPlan
    from core.transforms import Transforms
    from diagnostics.findings.finding import Finding
    from run.decision import Ranked
    from run.settings import RecoverySettings, Settings


@dataclass(frozen=True, repr=False)
class Scores:
    """What ``Session.score`` measured, and the transforms to rank it under.

    values: float64 (G,), importance of every group in the order of ``plan.groups``; higher = keep.
    """

    importance: "Importance"
    prior: "Prior | None"
    transforms: "Transforms"
    architecture: "Architecture"

    @property
    def values(self) -> "np.ndarray":
        return self.importance.values

    @property
    def method(self) -> str:
        return self.importance.criterion

    def __repr__(self) -> str:
        return f"Scores({self.method}, {len(self.values):,} groups, {self.transforms.flags or 'no transform'})"

    def _repr_html_(self) -> str:
        import numpy as np

        from core.kinds import TABLE

        groups = self.architecture.groups
        rows = []
        for kind in groups.kinds:
            values = self.values[groups.kind == kind]
            rows.append(
                [TABLE[kind].name, f"{len(values):,}", *(f"{value:.3g}" for value in np.quantile(values, [0, 0.5, 1]))]
            )
        return html_table(repr(self), rows, ["importance of", "groups", "lowest", "median", "highest"])


@dataclass(frozen=True, repr=False)
class Check:
    """What a plan costs on text that importance did not see, nothing cut.

    loss, dense_loss: nats per token, means over windows. increase: their difference; standard_error: of that
    difference, paired by window.
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
        rows = [
            ["dense model", f"{self.dense_loss:.4f}"],
            ["with this plan", f"{self.loss:.4f}"],
            ["increase", f"{self.increase:+.4f} ± {self.standard_error:.4f}"],
        ]
        return html_table("", rows, [f"{self.num_windows} held-out windows", "nats/token"])


class Session:
    """One model, worked on step by step. Plans are cheap: measure once, plan as often as you like.

    Text is read, and the model loaded, when a step first needs them.
    """

    def __init__(self, settings: "Settings", model: Any, tokenizer: Any, say: Say, *, reads_text: bool) -> None:
        from core.say import note
        from run.session import Session as RunSession

        self._say, self._given, self._seed = say, model, settings.calibration.seed
        self._reads_text = reads_text
        self._ranked: dict[bytes, Ranked] = {}
        with self._at_work():
            self._inner: RunSession = RunSession(settings, model=model, tokenizer=tokenizer)
            for sentence in self._inner.source.notes:
                note(sentence)

    def __repr__(self) -> str:
        return self._inner.describe()

    def _repr_html_(self) -> str:
        shape, text = self._inner.architecture, self._inner.settings.calibration
        windows = (
            f"{text.num_samples} windows of {text.seq_len} tokens of {text.dataset}" if self._reads_text else "none"
        )
        rows = [
            ["layers", f"{shape.num_layers} ({shape.model_type})"],
            ["parameters", f"{shape.total_params:,}"],
            ["of them prunable", f"{shape.prunable_params:,}"],
            ["groups", f"{len(shape.groups):,}"],
            ["computed on", f"{self._inner.device} in {str(self._inner.dtype).removeprefix('torch.')}"],
            ["text", windows if self._reads_text else "none"],
        ]
        return html_table(self._inner.source.name, rows)

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
        Raises UsageError, DataError, NumericalError.
        """
        from run.recall import importance_of, prior_of

        asked = self._checked(
            importance_method=method,
            gradient_reduction=gradient_reduction,
            enable_grad_clip=clip is not False,
            enable_grad_norm=normalise is not None,
            norm_method=normalise,
            temperature=temperature,
            tau=tau,
            prior=prior,
            prior_samples=prior_samples,
            **_percentiles(clip),
        ).scores

        def measure() -> Scores:
            corrects = asked.temperature > 0
            if asked.criterion.reads_text or corrects:
                self._read_text(f"score({method!r})")
            importance = importance_of(self._inner, asked)
            measured = prior_of(self._inner, asked) if corrects else None
            return Scores(importance, measured, asked.transforms, self._inner.architecture)

        return self._do(measure)

    def plan(self, scores: Scores, ratio: float = 0.2, *, ratio_of: str = "total", **limits: Any) -> "PruningPlan":
        """Rank all groups and choose which go. limits: ``max_block_ratio``, ``freeze_first_n_layers``,
        ``freeze_last_n_layers``, ``min_kv_heads``, ``round_to``, ``epsilon``, ``target``, ``tensor_parallel``.

        Raises BudgetError where the ratio is out of reach, UsageError for a limit that there is not.
        """
        from pruning.targets import default_round_to
        from run.decision import rank
        from run.session import limits_of
        from run.settings import LimitSettings

        known = [option.name for option in fields(LimitSettings)]
        unknown = sorted(set(limits) - set(known))
        if unknown:
            raise UsageError(f"plan({unknown[0]}=...): there is no such limit; there are {', '.join(known)}")
        if scores.architecture != self._inner.architecture:
            raise PlanError("these scores are another model's; measure them with this session's score()")
        asked = self._checked(
            pruning_ratio=ratio,
            ratio_of=ratio_of,
            **limits | {"round_to": limits.get("round_to") or default_round_to(self._inner.architecture)},
        )
        ranked = self._do(
            lambda: rank(
                self._inner.architecture,
                scores.importance,
                scores.prior,
                transforms=scores.transforms,
                limits=limits_of(self._inner.source, asked.limits)[0],
                budget=asked.budget,
            )
        )
        self._ranked[ranked.plan.keep.tobytes()] = ranked
        return ranked.plan

    def explain(self, plan: "PruningPlan") -> tuple["Finding", ...]:
        """What a plan looks like and what to try next: findings, the most severe first. Of a plan that this session
        did not make, only its rates are judged."""
        from run.decision import Replayed
        from run.explain import diagnosis_of

        self._insist_on_own(plan)
        decision = self._ranked.get(plan.keep.tobytes()) or Replayed(plan)
        return tuple(self._do(lambda: diagnosis_of(self._inner, decision)).findings)

    def check(self, plan: "PruningPlan") -> Check:
        """Held-out loss of a plan, repaired as ``prune`` would repair it; nothing is cut and the model left as
        found."""
        self._insist_on_own(plan)

        def measure() -> Check:
            self._read_text("check()")
            return self._check(plan)

        return self._do(measure)

    def prune(self, plan: "PruningPlan", *, target: str = "hf") -> Any:
        """Repair and cut: a transformers model of the plan's widths, in eval mode with frozen parameters.

        target: ``stock`` for a model of the family's own class, from a plan that was made for it. The session's own
        model stays usable: weights come from its checkpoint again, or, where you brought the model, from a copy.
        Raises PlanError for another model's plan, or one whose widths the target does not take.
        """
        self._insist_on_own(plan)
        stock = self._checked(target=target).limits.target == "stock"
        return self._do(lambda: self._prune(plan, stock))

    def recover(
        self,
        small: Any,
        plan: "PruningPlan",
        how: str | Sequence[str] = "blocks",
        *,
        tokens: int | None = None,
        lora: int | None = None,
        report_to: Sequence[str] = (),
    ) -> Any:
        """Train what ``prune(plan)`` returned towards the dense model, in place and without labels; returns it.

        how: ``--recover``, a name or several; tokens, lora, report_to: ``--recover_tokens``, ``--recover_lora`` and
        ``--report_to``, for distillation. What training does not improve on held-out windows keeps its weights.
        Raises UsageError for a package that is missing, PlanError for another model's plan, ModelError for a model that
        the plan does not give.
        """
        self._insist_on_own(plan)
        settings = self._checked(
            recover=how, recover_tokens=tokens, recover_lora=lora, report_to=list(report_to) or None
        )
        return self._do(lambda: self._recover(small, plan, settings.recovery))

    def save(self, small: Any, path: str | Path, *, verify: bool = True, overwrite: bool = False) -> Path:
        """Write a model of ``prune``, trained on since or not, as a folder that ``from_pretrained`` loads; prove that
        the folder computes what ``small`` does. overwrite: replace a saved model that is there.

        Raises OutputError, ModelError for what is no model of this session's family, VerificationError.
        """
        from run.save_model import save_model

        folder = Path(path).expanduser()
        return self._do(lambda: save_model(self._inner, small, folder, verify_it=verify, overwrite=overwrite))

    def _check(self, plan: "PruningPlan") -> Check:
        from core.plan import nothing_removed
        from run.judging import loss_difference

        judge = self._inner.judge
        loss, dense = judge.loss(plan, "plan"), judge.loss(nothing_removed(plan.architecture), "dense")
        difference = loss_difference(loss, dense)
        return Check(
            float(loss.mean()), float(dense.mean()), difference["mean"], difference["standard_error"], len(loss)
        )

    def _prune(self, plan: "PruningPlan", stock: bool) -> Any:
        from models.rounding import round_parameters
        from run.deliver import cut_model, repair_model

        repairs = self._inner.settings.repairs and not plan.keep.all()
        if repairs:
            self._read_text("the repair in prune()")
        if stock:
            self._insist_on_stock(plan)
        model = self._inner.take_dense()
        if repairs:
            repair_model(self._inner, model, plan)
        round_parameters(model, self._inner.saved_dtype)  # the model in memory is the one that is saved
        return cut_model(model, self._inner.family, plan, stock=stock).requires_grad_(False)

    def _recover(self, small: Any, plan: "PruningPlan", asked: "RecoverySettings") -> Any:
        from pruning.recovery.packages import check_packages
        from run.recover import insist_on_cut, recover_model

        check_packages(distills=asked.distills, lora=asked.recover_lora is not None, report_to=asked.report_to)
        insist_on_cut(self._inner, small, plan)
        self._read_text("recover()")
        if asked.recover and not plan.keep.all():
            recover_model(self._inner, small, plan, asked)
        return small

    def _insist_on_own(self, plan: "PruningPlan") -> None:
        if plan.architecture != self._inner.architecture:
            raise PlanError("the plan was made for another model; make one with this session's plan()")

    def _insist_on_stock(self, plan: "PruningPlan") -> None:
        from pruning.targets import check_plan
        from run.session import limits_of
        from run.settings import LimitSettings

        _, shapes = limits_of(self._inner.source, LimitSettings(target="stock"))
        check_plan("stock", plan, **shapes)

    def _read_text(self, who: str) -> None:
        """Windows to measure and judge on, drawn once."""
        if not self._reads_text:
            raise DataError(f"{who} reads text, and the session was opened with dataset=None; open it with a dataset")
        if self._inner.calibration is None:
            self._inner.read_windows(judging=True)

    def _checked(self, **asked: Any) -> "Settings":
        """Options of one step, checked as the command line checks them."""
        from cli.keywords import settings_of

        return settings_of({"base_model": self._inner.settings.model.base_model, **asked})

    def _do(self, step: Callable[[], Any]) -> Any:
        with self._at_work(), self._inner.within_its_memory():
            return step()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        from run.surroundings import surroundings

        with heard_by(self._say), surroundings(self._seed, self._given), in_the_programs_words():
            yield


def _percentiles(clip: bool | tuple[float, float]) -> dict[str, Any]:
    if isinstance(clip, bool):
        return {}
    try:
        low, high = clip
    except (TypeError, ValueError):
        raise UsageError(f"clip={clip!r} is neither True nor False nor two percentiles, (5, 95)") from None
    return {"clip_percentile_low": low, "clip_percentile_high": high}
