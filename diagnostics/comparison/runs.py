"""Which runs are compared: their folders read, named apart, and what each of them lacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import UsageError
from core.progress import tqdm
from diagnostics.comparison.health import Health, health
from diagnostics.run_folder import FILES, SCHEMA_VERSION, Run, at, number, read_run


@dataclass(frozen=True)
class Named:
    """A run under the name it has in tables: the shortest end of its path that no other one shares."""

    name: str
    run: Run

    @property
    def health(self) -> Health:
        return health(self.run)


def read_runs(folders: Sequence[Path]) -> list[Named]:
    """The runs in the order given. UsageError for a folder without one, or given twice."""
    resolved = [folder.resolve() for folder in folders]
    for index, folder in enumerate(resolved):
        if folder in resolved[:index]:
            raise UsageError(f"{folders[index]} is given twice; name each run once")
    runs = [read_run(folder) for folder in tqdm(folders, desc="read", unit="run", leave=False, delay=1)]
    return [Named(name, run) for name, run in zip(shortest_names(resolved), runs, strict=True)]


def shortest_names(folders: Sequence[Path]) -> list[str]:
    """``a/run`` and ``b/run`` for /x/a/run and /x/b/run; ``run`` where no other path ends so. Absolute, distinct."""
    parts = [folder.parts for folder in folders]
    return [_shortest(own, [other for other in parts if other != own]) for own in parts]


def _shortest(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    lengths = (n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others))
    return "/".join(own[-next(lengths, len(own)) :]).replace("//", "/")


def missing(run: Run) -> list[str]:
    """One sentence for each thing that a table cannot show of this run."""
    ratio = number(run.diagnosis, "gradient_statistics", "mean_ratio")
    rules = [
        (not run.record, f"{FILES['record']}: the run is not finished"),
        (_other_schema(run), f"{FILES['record']}: schema_version {at(run.record, 'schema_version')!r}, "
         f"this program writes {SCHEMA_VERSION}"),
        (not run.diagnosis, f"{FILES['diagnosis']}: no gradients, no scores; layers are judged by the plan"),
        (not run.comparison, f"{FILES['comparison']}: sizes come from the plan"),
        (run.blocks is None, f"{FILES['plan']}: no overlap with other runs"),
        (bool(run.diagnosis) and ratio is None, _no_gradients(run)),
        *_unmeasured(run),
    ]  # fmt: skip
    return [sentence for holds, sentence in rules if holds]


def _unmeasured(run: Run) -> list[tuple[bool, str]]:
    dry = run.option("dry_run") is True
    measured = [bool(run.perplexity(side) or run.tasks(side)) for side in ("dense", "pruned")]
    pruned = "dry run, nothing was pruned" if dry else "the pruned model was not evaluated"
    return [
        (not run.evaluation, f"evaluation: {'dry run, ' if dry else ''}nothing was measured"),
        (bool(run.evaluation) and not measured[0], "evaluation: the dense model was not evaluated"),
        (bool(run.evaluation) and not measured[1], f"evaluation: {pruned}"),
    ]


def _no_gradients(run: Run) -> str:
    source = at(run.diagnosis, "gradient_source")
    if at(run.record, "options", "plan"):
        return "gradients: a saved plan was replayed"
    criterion = run.option("importance_method")
    return f"gradients: {criterion} uses none" if source == "none" and criterion else "gradients: no ratio"


def _other_schema(run: Run) -> bool:
    return bool(run.record) and at(run.record, "schema_version") != SCHEMA_VERSION
