"""Finished runs side by side: read, rank, write, and the text for the console."""

from collections.abc import Sequence
from pathlib import Path

from core.errors import OutputError
from core.failures import convenience
from core.files import write_json, write_text
from core.output import RECORD, UNFINISHED, check_output, readable
from diagnostics.comparison.charts_of_runs import PICTURES, draw_comparison
from diagnostics.comparison.data import as_csv, as_json, is_comparison
from diagnostics.comparison.page import write_comparison_page
from diagnostics.comparison.ranking import rankings
from diagnostics.comparison.runs import read_runs
from diagnostics.comparison.shared import overlaps
from diagnostics.comparison.tables import all_tables, best_lines, missing_lines


def compare(folders: Sequence[Path], output: Path | None = None, overwrite: bool = False) -> str:
    """Read, rank, write where ``output`` is given; the text for the console.

    Raises UsageError for a folder without a run, OutputError for an output folder that is not empty.
    """
    if output is not None:
        check_output(output, overwrite)
        _spare_what_is_no_comparison(output)
    runs = read_runs(folders)
    ranked, shared = rankings(runs), overlaps(runs)
    tables, best, lacking = all_tables(runs, ranked, shared), best_lines(ranked), missing_lines(runs)

    written: list[Path] = []
    warnings: list[str] = []
    if output is not None:
        data = as_json(runs, ranked, shared)
        written = [
            write_json(output / "comparison.json", data),
            write_text(output / "comparison.csv", as_csv(data)),
            write_text(output / "comparison.md", markdown([table.markdown() for table in tables], best, lacking)),
            *draw_comparison(output, runs, warnings),
        ]
        with convenience("report.html is missing", warnings):
            written.append(write_comparison_page(output / "report.html", runs, ranked, shared, tables, written))
    sections = [table.console() for table in tables]
    sections += ["\n".join([title, *lines]) for title, lines in _lists(best, lacking, written) if lines]
    return "\n\n".join(sections)


def _spare_what_is_no_comparison(output: Path) -> None:
    """OutputError where a file that would be written stands already and no comparison wrote it."""
    names = ("comparison.json", "comparison.csv", "comparison.md", "report.html", *PICTURES)
    of_a_run = any((output / name).exists() for name in (RECORD, UNFINISHED))
    taken = [name for name in names if (output / name).exists()]
    if taken and (of_a_run or not is_comparison(output / "comparison.json")):
        raise OutputError(
            f"--output {readable(output)} holds {taken[0]}, which no comparison wrote; give a folder of its own"
        )


def markdown(tables: Sequence[str], best: Sequence[str], lacking: Sequence[str]) -> str:
    sections = ["# Comparison", *tables]
    sections += [f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) for title, lines in _lists(best, lacking)]
    return "\n\n".join(sections) + "\n"


def _lists(best: Sequence[str], lacking: Sequence[str], written: Sequence[Path] = ()) -> list[tuple[str, list[str]]]:
    lists = [("Best", list(best)), ("Missing", list(lacking)), ("Written", [str(path) for path in written])]
    return [(title, lines) for title, lines in lists if lines]
