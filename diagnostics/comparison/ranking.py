"""Which run is best. Perplexities compare only between runs of one model, on one text, at equal size.

Equal size: parameters of the pruned models differ by at most 0.1 % of the dense model's. One text: dataset, window
length, number of tokens and source agree, and so do fingerprints where run.json has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.plan import EQUAL_SIZE
from diagnostics.comparison.runs import Named
from diagnostics.run_folder import Run, at


@dataclass(frozen=True)
class Ranking:
    """names: the runs that compare, the lowest perplexity first. of_total: removed fraction of the first of them."""

    dataset: str
    of_total: float
    names: tuple[str, ...]
    perplexities: tuple[float, ...]

    @property
    def best(self) -> str | None:
        """The first of ``winners``; None where there is nothing to compare with."""
        return self.names[0] if len(self.names) > 1 else None

    @property
    def winners(self) -> tuple[str, ...]:
        """All runs of the lowest perplexity: equal plans share a place."""
        return tuple(name for name in self.names if self.place(name) == 1) if self.best else ()

    def place(self, name: str) -> int:
        """1 for the best; runs of equal perplexity share the place of the first of them."""
        return 1 + self.perplexities.index(self.perplexities[self.names.index(name)])


def rankings(runs: Sequence[Named]) -> list[Ranking]:
    """Datasets in the order met, then sizes ascending by what is removed; every evaluated run is in one a dataset."""
    datasets = dict.fromkeys(dataset for item in runs for dataset in item.run.perplexity("pruned"))
    return [ranking for dataset in datasets for ranking in _of_dataset(dataset, runs)]


def _of_dataset(dataset: str, runs: Sequence[Named]) -> list[Ranking]:
    groups: list[list[Named]] = []
    measured = [item for item in runs if dataset in item.run.perplexity("pruned") and item.run.of_total is not None]
    for item in sorted(measured, key=_removed):
        group = next((group for group in groups if _comparable(group[0].run, item.run, dataset)), None)
        groups.append([item]) if group is None else group.append(item)
    return [_ranking(dataset, group) for group in groups]


def _ranking(dataset: str, group: Sequence[Named]) -> Ranking:
    ordered = sorted(group, key=lambda item: item.run.perplexity("pruned")[dataset])
    values = tuple(item.run.perplexity("pruned")[dataset] for item in ordered)
    return Ranking(dataset, _removed(ordered[0]), tuple(item.name for item in ordered), values)


def _removed(item: Named) -> float:
    return item.run.of_total or 0.0


def _comparable(a: Run, b: Run, dataset: str) -> bool:
    (dense, first), (other_dense, second) = a.parameters, b.parameters
    if dense is None or first is None or second is None or dense != other_dense:
        return False
    model, other_model = a.option("base_model"), b.option("base_model")
    same_model = model == other_model or None in (model, other_model)
    return same_model and abs(first - second) <= EQUAL_SIZE * dense and _same_text(a, b, dataset)


def _same_text(a: Run, b: Run, dataset: str) -> bool:
    fingerprints = [at(run.record, "windows", f"evaluation {dataset}", "sha256") for run in (a, b)]
    if None not in fingerprints:
        return bool(fingerprints[0] == fingerprints[1])
    return _text(a, dataset) == _text(b, dataset)


def _text(run: Run, dataset: str) -> list[Any]:
    return [at(run.evaluation, "pruned", "perplexity", dataset, key) for key in ("source", "seq_len", "num_tokens")]
