"""What a calibration text costs at home and elsewhere: extra loss by the text that importance and repair read.

    python -m benchmarks.calibration_text --model demo --home pydoc
    python -m benchmarks.calibration_text --model smollm2 --home wiki.valid.txt --home_test wiki.test.txt \\
        --ratio_of total --ratios 0.2 --samples 24 --seq_len 512 --eval_samples 8

A row is a calibration text: the home text alone, the model's own (``self``), both in equal shares. Each is pruned and
repaired by the program's defaults (``ours`` of benchmarks.quality). A column is a text: home, held-out documentation
and code of the standard library, other samples that the model writes, and files (``--other``). Loss is in nats per
token above the dense model; after ±, the standard error over windows of its difference from the first row. Choose by
``development``; ``confirmation`` holds other windows. With ``--json`` a finished row is kept: an interrupted run
goes on.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.__main__ import numbers
from benchmarks.quality.case import Case, pruned
from benchmarks.quality.drawing import Texts
from benchmarks.quality.methods import METHODS, OURS
from benchmarks.quality.models import folder_of, known_models
from benchmarks.quality.texts import DEVELOPMENT, IN_DOMAIN, OUT_OF_DOMAIN, PARTS
from calibration import evaluation_windows
from core.names import SELF
from core.windows import TokenWindows
from evaluation.perplexity import window_nll
from models.loading import ModelSource, check_model, load_model


@dataclass
class Bench:
    """A dense model and what its texts are drawn with."""

    options: argparse.Namespace
    source: ModelSource
    case: Case
    drawn: Texts

    @staticmethod
    def of(options: argparse.Namespace) -> "Bench":
        source = check_model(str(folder_of(options.model)))
        model = load_model(source, torch.device("cpu"), torch.float32)
        nothing = TokenWindows(np.empty((0, options.seq_len), dtype=np.int64), "", "", "")
        case = Case(model, source.family, source.architecture, nothing, options.seed)
        return Bench(options, source, case, Texts.of(source, model, options.seq_len))

    def texts(self) -> dict[str, np.ndarray]:
        """int64 (N, T) by name: windows of one part of each text."""
        options, tokenizer = self.options, self.source.tokenizer
        count, second = options.eval_samples, options.part != DEVELOPMENT
        found = self.drawn.held_out((IN_DOMAIN, OUT_OF_DOMAIN, SELF), options.part, count)
        files = {Path(name).stem: name for name in options.other}
        if options.home != IN_DOMAIN:
            files = {"home": options.home_test or options.home} | files
        read = {
            name: evaluation_windows(path, tokenizer, options.seq_len, 2 * count, options.home).ids[second::2]
            for name, path in files.items()
        }
        return read | {name: windows.ids for name, windows in found.items()}

    def losses(self, texts: dict[str, np.ndarray]) -> dict[str, list[float]]:
        """Nats per predicted token of each window."""
        found = {}
        for name, ids in texts.items():
            nll = window_nll(self.case.model, ids, batch_size=None, description=f"loss on {name}")
            found[name] = (nll / (ids.shape[1] - 1)).round(6).tolist()
        return found

    def of_prunable(self, ratio: float) -> float:
        shape = self.source.architecture
        return ratio * shape.total_params / shape.prunable_params if self.options.ratio_of == "total" else ratio


def rows(bench: Bench) -> Iterator[tuple[str, float, dict[str, list[float]]]]:
    """(calibration text, ratio, losses), the dense model first, as "dense"."""
    options, texts = bench.options, bench.texts()
    kept = {(row["text"], row["ratio"]): row["nll"] for row in kept_rows(options)}

    def measured(text: str, ratio: float) -> dict[str, list[float]]:
        if (text, ratio) not in kept:
            kept[text, ratio] = bench.losses(texts)
            keep_row(options, text, ratio, kept[text, ratio])
        return kept[text, ratio]

    yield "dense", 0.0, measured("dense", 0.0)
    for text in options.texts or [options.home, SELF, f"{options.home},{SELF}"]:
        if all((text, ratio) in kept for ratio in options.ratios):
            yield from ((text, ratio, kept[text, ratio]) for ratio in options.ratios)
            continue
        bench.case.memory = {}
        bench.case.windows = bench.drawn.calibration(text, options.samples, options.seed)
        for ratio in options.ratios:
            with pruned(METHODS[OURS], bench.case, bench.of_prunable(ratio)):
                yield text, ratio, measured(text, ratio)


def kept_rows(options: argparse.Namespace) -> list[dict]:
    if options.json is None or not options.json.exists():
        return []
    rows = [json.loads(line) for line in options.json.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["setting"] == setting_of(options)]


def keep_row(options: argparse.Namespace, text: str, ratio: float, nll: dict[str, list[float]]) -> None:
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"setting": setting_of(options), "text": text, "ratio": ratio, "nll": nll}) + "\n")


def setting_of(options: argparse.Namespace) -> dict[str, object]:
    names = ("model", "home", "home_test", "other", "ratio_of", "samples", "seq_len", "seed", "part", "eval_samples")
    return {name: getattr(options, name) for name in names}


def table(found: list[tuple[str, float, dict[str, list[float]]]]) -> str:
    dense = found[0][2]
    lines = [f"| calibration text | removed | {' | '.join(dense)} | mean |", "|---" * (3 + len(dense)) + "|"]
    means = [f"{np.mean(nll):.3f}" for nll in dense.values()]
    lines.append(f"| dense, nats/token | | {' | '.join(means)} | |")
    for text, ratio, nll in found[1:]:
        first = next(other for _, r, other in found[1:] if r == ratio)
        extra = {name: np.mean(nll[name]) - np.mean(dense[name]) for name in dense}
        cells = [f"{extra[name]:.3f}{_error(nll[name], first[name])}" for name in dense]
        lines.append(f"| {text} | {ratio:.0%} | {' | '.join(cells)} | {np.mean(list(extra.values())):.3f} |")
    return "\n".join(lines)


def _error(nll: list[float], other: list[float]) -> str:
    if nll == other:
        return ""
    gap = np.subtract(nll, other)
    return f" ± {gap.std(ddof=1) / len(gap) ** 0.5:.3f}"


def main() -> None:
    print(table(list(rows(Bench.of(parse_arguments())))))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration_text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="demo", help=f"of {', '.join(known_models())}, or a folder (%(default)s)")
    add("--home", default=IN_DOMAIN, help="the text that the user has: a name or a path (%(default)s)")
    add("--home_test", help="another file of the home text to evaluate on, of a path (its held-out part)")
    add("--other", nargs="*", default=[], help="further files to evaluate on")
    add("--texts", nargs="*", help="calibration texts, in place of home, self and both")
    add("--ratios", type=numbers(float), default=[0.3, 0.5], help="with commas (0.3,0.5)")
    add("--ratio_of", choices=("prunable", "total"), default="prunable", help="(%(default)s)")
    add("--samples", type=int, default=64, help="calibration windows (%(default)s)")
    add("--seq_len", type=int, default=256, help="tokens a window, also of the texts (%(default)s)")
    add("--eval_samples", type=int, default=48, help="windows of each text, at most (%(default)s)")
    add("--seed", type=int, default=0, help="of the calibration windows (%(default)s)")
    add("--part", choices=PARTS, default=DEVELOPMENT, help="of the texts (%(default)s)")
    add("--json", type=Path, help="keeps finished rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
