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

from benchmarks.pretrained import default_folder, pretrained
from benchmarks.quality.__main__ import known_models, numbers
from benchmarks.quality.methods import METHODS, OURS, Case, pruned
from benchmarks.quality.texts import DEVELOPMENT, IN_DOMAIN, PARTS, held_out_windows
from calibration import calibration_windows, evaluation_windows
from calibration.mixing import counts_of, mixed
from calibration.self_text import CALIBRATING, EVALUATING, Beginnings, beginnings, windows_of, written_windows
from core.names import SELF
from core.sources import sources_of
from core.windows import TokenWindows
from evaluation.perplexity import window_nll
from models.loading import ModelSource, check_model, generation_config_of, load_model

PRETRAINED = "smollm2"


@dataclass
class Bench:
    """A dense model and what its texts are drawn with."""

    options: argparse.Namespace
    source: ModelSource
    case: Case
    begin: Beginnings

    @staticmethod
    def of(options: argparse.Namespace) -> "Bench":
        source = check_model(str(folder_of(options.model)))
        model = load_model(source, torch.device("cpu"), torch.float32)
        vocab_rows = source.config.get_text_config().vocab_size
        begin = beginnings(source.tokenizer, generation_config_of(source).eos_token_id, vocab_rows)
        nothing = TokenWindows(np.empty((0, options.seq_len), dtype=np.int64), "", "", "")
        return Bench(options, source, Case(model, source.family, source.architecture, nothing, options.seed), begin)

    def written(self, count: int, purpose: str, seed: int) -> TokenWindows:
        ids = written_windows(self.case.model, self.begin, count, self.options.seq_len, seed, purpose)
        return windows_of(ids, purpose, seed)

    def calibration(self, dataset: str) -> TokenWindows:
        options, counts = self.options, counts_of(sources_of(dataset), self.options.samples)
        parts = {
            name: self.written(count, CALIBRATING, options.seed)
            if name == SELF
            else calibration_windows(name, self.source.tokenizer, count, options.seq_len, options.seed)
            for name, count in counts.items()
        }
        return mixed(parts, dataset, options.seed)

    def texts(self) -> dict[str, np.ndarray]:
        """int64 (N, T) by name: windows of one part of each text."""
        options, tokenizer = self.options, self.source.tokenizer
        count, second = options.eval_samples, options.part != DEVELOPMENT
        found = held_out_windows(tokenizer, options.part, count, options.seq_len)
        files = {Path(name).stem: name for name in options.other}
        if options.home != IN_DOMAIN:
            files = {"home": options.home_test or options.home} | files
        read = {
            name: evaluation_windows(path, tokenizer, options.seq_len, 2 * count, options.home).ids[second::2]
            for name, path in files.items()
        }
        own = self.written(2 * count, EVALUATING, 0).ids[second::2]
        return read | {name: windows.ids for name, windows in found.items()} | {SELF: own}

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


def folder_of(model: str) -> Path:
    if model == PRETRAINED:
        return pretrained(default_folder())
    return known_models().get(model) or Path(model)


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
        bench.case.memory, bench.case.windows = {}, bench.calibration(text)
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
    add("--model", default="demo", help=f"of {', '.join(known_models())}, {PRETRAINED}, or a folder (%(default)s)")
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
