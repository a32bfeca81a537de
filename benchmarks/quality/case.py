"""What a method is given, and what it gives back: one model with one seed's text in, the groups it keeps out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from benchmarks.quality.stream import input_moments, layers_restored, silence
from core.families import Family
from core.groups import Architecture
from core.plan import PruningPlan
from core.windows import TokenWindows
from importance.measure import measure_importance

T = TypeVar("T")


class Training(NamedTuple):
    """What recovery trains on: tokens, all steps together; text int64 (N, T); check int64 (M, T), windows that no step
    sees."""

    tokens: int
    text: np.ndarray
    check: np.ndarray


@dataclass
class Case:
    """One model with one seed's calibration windows.

    training: draws the text that a recovery trains on; None where none is asked for. memory: what was measured, and the
    seconds it took, serves every ratio. remembered_s: seconds that cells saved so; they belong to the method's time.
    """

    model: Any
    family: Family
    architecture: Architecture
    windows: TokenWindows
    seed: int
    training: Callable[[], Training] | None = None
    memory: dict[str, tuple[Any, float]] = field(default_factory=dict)
    remembered_s: float = 0.0

    def once(self, name: str, measure: Callable[[], T]) -> T:
        if name in self.memory:
            self.remembered_s += self.memory[name][1]
        else:
            start = time.perf_counter()
            self.memory[name] = (measure(), time.perf_counter() - start)
        value: T = self.memory[name][0]
        return value

    def importance(self, criterion: str, reduction: str = "sequence") -> np.ndarray:
        """float64 (G,), of the dense model."""
        return self.once(f"{criterion} {reduction}", lambda: self.measured(criterion, reduction))

    def measured(self, criterion: str, reduction: str = "sequence") -> np.ndarray:
        """float64 (G,), of the model as it is now."""
        model, family, architecture, windows = self.model, self.family, self.architecture, self.windows
        return measure_importance(
            model, family, architecture, windows, criterion=criterion, gradient_reduction=reduction
        ).values

    def moments(self) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        return self.once("moments", lambda: input_moments(self.model, self.family, self.windows.ids))

    def plan(self, keep: np.ndarray, ratio: float) -> PruningPlan:
        """A choice as the program's stages take it. keep: bool (G,)."""
        removed = int(self.architecture.groups.cost[~keep].sum())
        return PruningPlan(self.architecture, keep, (), ratio, "prunable", removed, removed, "")


Keep = Callable[[Case, float], np.ndarray]


class Method(NamedTuple):
    """keep: of (case, ratio of the prunable parameters), bool (G,). says: one line of the table's legend. refits:
    whether weights that stay are refitted in closed form. trains: whether they are trained by gradients."""

    keep: Keep
    says: str
    refits: bool = False
    trains: bool = False


@contextmanager
def pruned(method: Method, case: Case, ratio: float) -> Iterator[np.ndarray]:
    """Inside, ``case.model`` computes what the pruned one would; yields keep, bool (G,). Afterwards it is as found."""
    with layers_restored(case.model, case.family):
        keep = method.keep(case, ratio)
        silence(case.model, case.family, case.architecture, keep)
        yield keep
