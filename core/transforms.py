"""Which transforms act between importance and ranking, as a value: what the user asked for, what a remedy changes."""

import math
import shlex
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any, Literal

from core.errors import UsageError
from core.names import NORM_METHODS


@dataclass(frozen=True)
class Transforms:
    """Which transforms act. A value that cannot work: UsageError.

    clip_low, clip_high: percentiles of s over the whole model, 0 to 100.
    normalise: one of NORM_METHODS or None.
    temperature: T ≥ 0; 0 is no correction. tau: ≥ 0 in the prior's unit, ``math.inf`` or ``auto``.
    """

    clip: bool = False
    clip_low: float = 5.0
    clip_high: float = 95.0
    normalise: str | None = None
    temperature: float = 0.0
    tau: float | Literal["auto"] = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < self.clip_high <= 100:
            raise UsageError(
                f"--clip_percentile_low {self.clip_low:g} --clip_percentile_high {self.clip_high:g}: "
                "needs 0 <= low < high <= 100, e.g. 5 and 95"
            )
        if self.normalise is not None and self.normalise not in NORM_METHODS:
            raise UsageError(f"--norm_method {self.normalise}: needs one of {', '.join(NORM_METHODS)}")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"--temperature {self.temperature:g}: needs a finite number, at least 0, e.g. 1")
        if self.tau != "auto" and not (isinstance(self.tau, (int, float)) and self.tau >= 0):
            raise UsageError(f"--tau {self.tau}: needs a number of at least 0, inf or auto")

    @property
    def flags(self) -> str:
        """The options that ask for these transforms, whole; empty for none."""
        words = []
        if self.clip:
            words += ["--enable_grad_clip", "--clip_percentile_low", f"{self.clip_low:g}"]
            words += ["--clip_percentile_high", f"{self.clip_high:g}"]
        if self.normalise:
            words += ["--enable_grad_norm", "--norm_method", self.normalise]
        if self.temperature:
            words += ["--temperature", f"{self.temperature:g}", "--tau", _number(self.tau)]
        return " ".join(words)

    @property
    def described(self) -> dict[str, Any]:
        """What acts, for readers: name -> value, in the order in which it acts; empty for none."""
        acting: dict[str, Any] = {}
        if self.clip:
            acting["clip percentiles"] = f"{self.clip_low:g} to {self.clip_high:g}"
        if self.normalise:
            acting["normalisation"] = self.normalise
        if self.temperature:
            acting |= {"temperature": self.temperature, "tau": self.tau}
        return acting


@dataclass(frozen=True)
class Remedy:
    """What to switch on or change on top of a run's settings; None leaves a thing as it is.

    A remedy is a value: ``applied_to`` carries it out, ``flags`` shows it to people.
    """

    clip: bool | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    normalise: str | None = None
    temperature: float | None = None
    tau: float | Literal["auto"] | None = None
    max_block_ratio: float | None = None
    num_samples: int | None = None
    protect: str | None = None
    importance_method: str | None = None
    pruning_ratio: float | None = None
    ratio_of: str | None = None
    dataset: str | None = None
    eval_datasets: tuple[str, ...] | None = None
    eval_elsewhere: str | None = None
    reconstruct: str | None = None
    recover: str | None = None
    recover_tokens: int | None = None

    def __or__(self, other: "Remedy") -> "Remedy":
        """Both; where both change a thing, the second does."""
        return replace(self, **other.changes)

    @property
    def changes(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def applied_to(self, transforms: Transforms) -> Transforms:
        """The transforms with this remedy; what is none of them stays out."""
        known = {option.name for option in fields(Transforms)}
        return replace(transforms, **{name: value for name, value in self.changes.items() if name in known})

    @property
    def flags(self) -> str:
        """The exact options to try, as one string; empty for no change."""
        words = []
        if self.normalise is not None:
            words += ["--enable_grad_norm", "--norm_method", self.normalise]
        if self.clip:
            words.append("--enable_grad_clip")
        for name in ("clip_low", "clip_high"):
            if getattr(self, name) is not None:
                words += [f"--clip_percentile_{name.removeprefix('clip_')}", f"{getattr(self, name):g}"]
        if self.temperature is not None:
            words += ["--temperature", str(float(self.temperature))]
        if self.tau is not None:
            words += ["--tau", self.tau if self.tau == "auto" else str(float(self.tau))]
        if self.max_block_ratio is not None:
            words += ["--max_block_ratio", f"{self.max_block_ratio:g}"]
        if self.num_samples is not None:
            words += ["--num_samples", str(self.num_samples)]
        if self.protect is not None:
            words += ["--protect", self.protect]
        if self.importance_method is not None:
            words += ["--importance_method", self.importance_method]
        if self.pruning_ratio is not None:
            words += ["--pruning_ratio", format(Decimal(repr(self.pruning_ratio)), "f")]
        if self.ratio_of is not None:
            words += ["--ratio_of", self.ratio_of]
        if self.dataset is not None:
            words += ["--dataset", shlex.quote(self.dataset)]
        if self.eval_datasets is not None:
            words += ["--eval_datasets", shlex.quote(",".join(self.eval_datasets))]
        if self.eval_elsewhere is not None:
            words += ["--eval_elsewhere", shlex.quote(self.eval_elsewhere)]
        if self.reconstruct is not None:
            words += ["--reconstruct", self.reconstruct]
        if self.recover is not None:
            words += ["--recover", self.recover]
        if self.recover_tokens is not None:
            words += ["--recover_tokens", str(self.recover_tokens)]
        return " ".join(words)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
