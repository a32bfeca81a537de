"""The table of methods. Each changes a model in place and returns the groups it keeps.

A method is a function of (case, ratio) -> bool (G,). It may change weights and biases of a layer's projections, which
``pruned`` restores; the columns of what it does not keep are zeroed for it. Adding a method is adding a function
and a row of METHODS.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from benchmarks.baselines import (
    compensating_bias,
    fluctuation,
    greedy_surgeon,
    least_squares,
    ranked_keep,
    redundant_layers,
    skipped_layers,
    uniform_keep,
)
from benchmarks.quality.stream import Stream, feature_mask, input_moments, output_members, projections_restored, silence
from core.families import Family
from core.groups import Architecture
from core.plan import PruningPlan
from core.transforms import Transforms
from core.windows import TokenWindows
from importance.elimination import eliminate, in_order
from importance.measure import measure_importance
from importance.obs_moments import MomentMeter
from importance.priors import measure_prior
from importance.scoring import score_groups
from pruning.planning import Limits, frozen_groups
from pruning.repair import DEFAULT, RepairSettings, repair

T = TypeVar("T")


@dataclass
class Case:
    """One model with one seed's calibration windows.

    memory: what was measured, and the seconds it took, serves every ratio. remembered_s: seconds that cells saved so;
    they belong to the method's time.
    """

    model: Any
    family: Family
    architecture: Architecture
    windows: TokenWindows
    seed: int
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
        """float64 (G,)."""
        model, family, architecture, windows = self.model, self.family, self.architecture, self.windows
        return self.once(
            f"{criterion} {reduction}",
            lambda: (
                measure_importance(
                    model, family, architecture, windows, criterion=criterion, gradient_reduction=reduction
                ).values
            ),
        )

    def moments(self) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        return self.once("moments", lambda: input_moments(self.model, self.family, self.windows.ids))


Keep = Callable[[Case, float], np.ndarray]


class Method(NamedTuple):
    keep: Keep
    says: str  # one line of the table's legend


@contextmanager
def pruned(method: Method, case: Case, ratio: float) -> Iterator[np.ndarray]:
    """Inside, ``case.model`` computes what the pruned one would; yields keep, bool (G,). Afterwards it is as found."""
    with projections_restored(case.model, case.family):
        keep = method.keep(case, ratio)
        silence(case.model, case.family, case.architecture, keep)
        yield keep


# Selection


def random_uniform(case: Case, ratio: float) -> np.ndarray:
    values = np.random.default_rng(case.seed).random(len(case.architecture.groups))
    return uniform_keep(case.architecture, values, ratio)


def uniform(criterion: str) -> Keep:
    return lambda case, ratio: uniform_keep(case.architecture, case.importance(criterion), ratio)


def llm_pruner(case: Case, ratio: float) -> np.ndarray:
    frozen = skipped_layers(case.architecture.num_layers)
    return uniform_keep(case.architecture, case.importance("taylor", "sum"), ratio, frozen)


def ranked(criterion: str, normalise: str | None = None) -> Keep:
    """Importance per parameter, ranked over all groups."""

    return lambda case, ratio: ranked_by(case, case.importance(criterion), ratio, normalise)


def flap_selection(case: Case, ratio: float) -> np.ndarray:
    groups = case.architecture.groups
    scores = np.empty(len(groups))
    for (layer, kind), (_, variance) in case.moments().items():
        weight = _output(case, layer, kind).weight.detach().float().numpy()
        rows = groups.rows(layer, kind)
        scores[rows] = fluctuation(variance, weight, rows.stop - rows.start, kind)
    return ranked_keep(case.architecture, np.argsort(scores, kind="stable"), ratio)


def shortgpt(case: Case, ratio: float) -> np.ndarray:
    model, family, windows = case.model, case.family, case.windows
    prior = case.once("similarity", lambda: measure_prior(model, family, windows, method="similarity"))
    return ~np.isin(case.architecture.groups.layer, redundant_layers(case.architecture, prior.layer, ratio))


# Repair


def flap(case: Case, ratio: float) -> np.ndarray:
    """FLAP's selection, and its bias: what the removed features gave on average."""
    keep = flap_selection(case, ratio)
    for (layer, kind), (mean, _) in case.moments().items():
        module = _output(case, layer, kind)
        gone = ~feature_mask(output_members(case.family)[kind], case.architecture, layer, keep)
        added = compensating_bias(module.weight, torch.from_numpy(mean), gone)
        old = 0.0 if module.bias is None else module.bias.detach()
        module.bias = torch.nn.Parameter(added + old, requires_grad=False)
    return keep


def refitted(selection: Keep) -> Keep:
    """A selection, then least squares on what stays, layer by layer on the pruned stream."""

    def keep(case: Case, ratio: float) -> np.ndarray:
        chosen = selection(case, ratio)
        _sequentially(case, lambda layer, kind, _gram: chosen[case.architecture.groups.rows(layer, kind)])
        return chosen

    return keep


def surgeon(case: Case, ratio: float) -> np.ndarray:
    """Greedy choice in each block at a uniform ratio, its inputs those of the pruned and refitted layers before."""
    groups = case.architecture.groups
    counts = uniform_keep(case.architecture, np.zeros(len(groups)), ratio)
    keep = np.ones(len(groups), dtype=bool)

    def choose(layer: int, kind: int, gram: torch.Tensor) -> np.ndarray:
        rows = groups.rows(layer, kind)
        count = int((~counts[rows]).sum())
        keep[rows] = greedy_surgeon(_output(case, layer, kind).weight, gram, rows.stop - rows.start, count).numpy()
        return keep[rows]

    _sequentially(case, choose)
    return keep


def _sequentially(case: Case, choose: Callable[[int, int, torch.Tensor], np.ndarray]) -> None:
    """For each block in order: the Gram matrix of its inputs on the pruned stream, the choice, the refit."""
    stream = Stream(case.model, case.family, case.windows.ids)
    keep = np.ones(len(case.architecture.groups), dtype=bool)
    for layer in range(case.architecture.num_layers):
        for kind, member in enumerate(output_members(case.family)):
            gram = stream.gram(layer, member.path)
            keep[case.architecture.groups.rows(layer, kind)] = choose(layer, kind, gram)
            kept = feature_mask(member, case.architecture, layer, keep)
            if not kept.all():
                module = _output(case, layer, kind)
                module.weight.copy_(least_squares(module.weight, gram, kept.nonzero()[:, 0]))
        stream.advance(layer)


def _output(case: Case, layer: int, kind: int) -> Any:
    path = output_members(case.family)[kind].path
    return case.model.get_submodule(case.family.layers)[layer].get_submodule(path)


# Ours


def repaired(selection: Keep, settings: RepairSettings = DEFAULT) -> Keep:
    """A selection, then ``--reconstruct least_squares``."""

    def keep(case: Case, ratio: float) -> np.ndarray:
        chosen, groups = selection(case, ratio), case.architecture.groups
        removed = int(groups.cost[~chosen].sum())
        plan = PruningPlan(case.architecture, chosen, (), ratio, "prunable", removed, removed, "")
        repair(case.model, case.family, plan, case.windows, settings)
        return chosen

    return keep


def unweighted(case: Case, ratio: float) -> np.ndarray:
    """``obs`` without the loss's gradients: every output of every block counts alike."""
    groups = case.architecture.groups

    def values() -> np.ndarray:
        found = np.zeros(len(groups))
        for moments in MomentMeter(case.model, case.family, case.architecture, case.windows):
            for kind, gram in enumerate(moments.inputs):
                rows = groups.rows(moments.layer, kind)
                weight = _output(case, moments.layer, kind).weight.detach()
                found[rows] = in_order(eliminate(gram, weight, weight.shape[1] // (rows.stop - rows.start)))
        return found

    return ranked_by(case, case.once("obs unweighted", values), ratio)


def ranked_by(case: Case, importance: np.ndarray, ratio: float, normalise: str | None = None) -> np.ndarray:
    frozen = frozen_groups(case.architecture, Limits())
    options = Transforms(normalise=normalise)
    scores = score_groups(case.architecture.groups, importance, options, frozen=frozen, prior=None)
    return ranked_keep(case.architecture, scores.order, ratio)


OURS = "ours"  # the program's defaults


def is_variant(method: str) -> bool:
    """The defaults with one ingredient replaced."""
    return method.startswith(f"{OURS}-")


def is_published(method: str) -> bool:
    """All but the program's own: its defaults, their variants, and its normalisation by layer."""
    return method not in (OURS, "taylor-log") and not is_variant(method)


def repairs(method: str) -> bool:
    """Published ones alone: whether weights that stay are refitted."""
    return method.endswith("+refit")


METHODS: dict[str, Method] = {
    "random": Method(random_uniform, "groups by chance, every layer alike"),
    "magnitude-uniform": Method(uniform("magnitude"), "summed magnitude of the weights, every layer alike"),
    "magnitude": Method(ranked("magnitude"), "the same per parameter, ranked globally"),
    "wanda-sp": Method(uniform("wanda"), "magnitude × input norm of the output columns, every layer alike"),
    "llm-pruner": Method(llm_pruner, "weight × summed gradient, every layer alike but the ends, which stay"),
    "shortgpt": Method(shortgpt, "whole layers, by block influence"),
    "taylor": Method(ranked("taylor"), "weight × gradient a sequence, per parameter, ranked globally"),
    "taylor-log": Method(ranked("taylor", "log"), "the same, normalised by layer with log"),
    "fisher": Method(ranked("fisher"), "Fisher information of the group's mask, ranked globally"),
    "flap": Method(flap, "fluctuation, z-scored, ranked globally; removed means become a bias"),
    "flap-no-bias": Method(flap_selection, "the same without the bias"),
    "flap+refit": Method(refitted(flap_selection), "the same selection, least squares in place of the bias"),
    "surgeon+refit": Method(surgeon, "greedy optimal brain surgeon, every layer alike, least squares"),
    "taylor+refit": Method(refitted(ranked("taylor")), "taylor's selection, least squares"),
    "fisher+refit": Method(refitted(ranked("fisher")), "fisher's selection, least squares"),
    OURS: Method(repaired(ranked("obs")), "the defaults: obs, ranked globally, repaired towards the dense stream"),
    "ours-no-repair": Method(ranked("obs"), "without the repair"),
    "ours-by-taylor": Method(repaired(ranked("taylor")), "taylor in place of obs"),
    "ours-unweighted": Method(repaired(unweighted), "obs without the loss's gradients"),
    "ours-uniform": Method(repaired(uniform("obs")), "every layer alike in place of the global ranking"),
    "ours-outputs": Method(
        repaired(ranked("obs"), RepairSettings(modules="outputs")), "o_proj and down_proj alone repaired"
    ),
    "ours-unmixed": Method(
        repaired(ranked("obs"), RepairSettings(text="calibration")), "repaired on the windows alone"
    ),
    "ours-on-pruned": Method(
        repaired(ranked("obs"), RepairSettings(target="pruned")), "repaired towards whole blocks on the pruned stream"
    ),
    "ours-to-dense": Method(
        repaired(ranked("obs"), RepairSettings(target="dense")), "repaired towards the dense blocks' outputs"
    ),
}
