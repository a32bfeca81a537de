"""Extra loss of pruned models: this project's methods beside published ones, same models, windows, budget and text.

    python -m benchmarks.quality --models demo --seeds 0                       # one model, one seed
    python -m benchmarks.quality --models demo,qwen2,gemma3 --seeds 0,1,2      # three of each
    python -m benchmarks.quality --models demo,qwen2,gemma3 --seeds 3,4,5 --part confirmation   # docs/benchmarks.md
    python -m benchmarks.quality --methods ours,ours+distill,llm-pruner+lora --calibration pydoc pydoc,self
    python -m benchmarks.quality --models smollm2 --ratio_of total --ratios 0.2 --samples 24 --seq_len 512 \\
        --eval_samples 8
    python -m benchmarks.quality --models smollm2 --device cuda --seq_len 512 --recover_tokens 2000000

Models are small but really trained (models/demo, benchmarks/models); smollm2 is SmolLM2-135M-Instruct
(benchmarks/pretrained.py). Calibration: 64 windows of 256 tokens of the calibration split of ``pydoc``, drawn by seed,
or of other texts. Budget: the ratio of the prunable parameters, or of all. Loss: nats per token on held-out ``pydoc``,
on the standard library's code and on text that the dense model wrote, of the dense model with the removed groups
silenced, less that of the dense model. Recoveries train on one number of tokens. Choose by ``development`` and seeds 0
to 2; ``confirmation`` holds windows and modules that it lacks, for figures that nothing was chosen by. A run that is
interrupted goes on where it stopped: every finished cell is a line of ``--json``. All is computed in float32, without
TF32, also on a GPU; cells of one device are never taken for those of another.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.quality.case import Case
from benchmarks.quality.cells import DENSE, Cell, Setting, append_cell, measure, read_cells, weights_of
from benchmarks.quality.drawing import Texts
from benchmarks.quality.methods import METHODS
from benchmarks.quality.models import folder_of, known_models
from benchmarks.quality.picture import draw_losses
from benchmarks.quality.table import tables
from benchmarks.quality.texts import DEVELOPMENT, IN_DOMAIN, OUT_OF_DOMAIN, PARTS
from core.errors import PruningError
from core.files import write_text
from core.names import RATIO_OF, SELF
from models.loading import check_model, choose_device, load_model
from run.surroundings import surroundings

TEXTS = (IN_DOMAIN, OUT_OF_DOMAIN, SELF)


def main() -> None:
    try:
        with surroundings(0):
            run(parse_arguments())
    except PruningError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    wanted = settings(options)
    cells = read_cells(options.json)
    missing = [] if options.report else [setting for setting in wanted if setting not in cells]
    with tqdm(total=len(wanted), initial=len(wanted) - len(missing), unit="cell", disable=options.report) as bar:
        for model in options.models:
            for seed in options.seeds:
                todo = [s for s in missing if s.model == model and s.seed == seed]
                for cell in cells_of(model, seed, todo, options.device, bar.set_postfix_str):
                    append_cell(options.json, cell)
                    cells[cell.setting] = cell
                    bar.update()
    found = [cells[setting] for setting in wanted if setting in cells]
    text = tables(found)
    print(text)
    if options.table:
        write_text(options.table, text + "\n")
    if options.picture:
        draw_losses(options.picture, found)


def settings(options: argparse.Namespace) -> list[Setting]:
    """Every cell asked for, and the dense model once a model, seed and calibration text."""
    asked = [(DENSE, 0.0), *((method, ratio) for method in options.methods for ratio in options.ratios)]
    return [
        Setting(
            model=model,
            weights=weights,
            method=method,
            ratio=ratio,
            seed=seed,
            samples=options.samples,
            seq_len=options.seq_len,
            part=options.part,
            eval_samples=options.eval_samples,
            python=options.python,
            calibration=calibration,
            ratio_of=options.ratio_of,
            recover_tokens=options.recover_tokens if method != DENSE and METHODS[method].trains else 0,
            texts=",".join(options.texts),
            device=options.device.type,
        )
        for model, weights in ((model, weights_of(folder_of(model))) for model in options.models)
        for seed in options.seeds
        for calibration in options.calibration
        for method, ratio in asked
    ]


def cells_of(
    model: str, seed: int, todo: list[Setting], device: torch.device, say: Callable[[str], None]
) -> Iterator[Cell]:
    """Of one model and seed."""
    if not todo:
        return
    source, asked = check_model(str(folder_of(model))), todo[0]
    loaded = load_model(source, device, torch.float32)
    texts = Texts.of(source, loaded, asked.seq_len)
    held_out = texts.held_out(asked.texts.split(","), asked.part, asked.eval_samples)
    for calibration in dict.fromkeys(setting.calibration for setting in todo):
        windows = texts.calibration(calibration, asked.samples, seed)
        tokens = max(setting.recover_tokens for setting in todo)
        training = partial(texts.training, calibration, seed, tokens)
        case = Case(loaded, source.family, source.architecture, windows, seed, training)
        for setting in todo:
            if setting.calibration == calibration:
                say(f"{model}, seed {seed}, {calibration}: {setting.method} {setting.ratio:.0%}")
                yield measure(setting, case, held_out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models",
        type=lambda text: text.split(","),
        default=["demo"],
        help=f"of {', '.join(known_models())}, or folders and hub ids, in float32 (demo)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="to compute on (%(default)s)")
    parser.add_argument("--ratios", type=numbers(float), default=[0.2, 0.3, 0.5], help="(0.2,0.3,0.5)")
    parser.add_argument("--ratio_of", choices=RATIO_OF, default="prunable", help="parameters (%(default)s)")
    parser.add_argument("--seeds", type=numbers(int), default=[0], help="of the calibration windows (0)")
    parser.add_argument(
        "--methods", type=names(tuple(METHODS)), default=list(METHODS), help=f"of {', '.join(METHODS)} (all)"
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        default=[IN_DOMAIN],
        help=f"texts, each as --dataset of the program takes it, e.g. {IN_DOMAIN} {SELF} {IN_DOMAIN},{SELF} (pydoc)",
    )
    parser.add_argument(
        "--recover_tokens", type=int, default=500_000, help="that each recovery trains on (%(default)s)"
    )
    parser.add_argument("--texts", type=names(TEXTS), default=list(TEXTS), help=f"to read loss on ({','.join(TEXTS)})")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows (%(default)s)")
    parser.add_argument("--seq_len", type=int, default=256, help="tokens a window, also of the texts (%(default)s)")
    parser.add_argument("--part", choices=PARTS, default=DEVELOPMENT, help="of the texts (%(default)s)")
    parser.add_argument("--eval_samples", type=int, default=96, help="windows of each text, at most (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("results/quality.jsonl"), help="results (%(default)s)")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: tables and picture of what --json holds"
    )
    parser.add_argument("--python", metavar="VERSION", help="of --report: the Python that measured (this one)")
    parser.add_argument("--table", type=Path, help="write the Markdown tables there too")
    parser.add_argument("--picture", type=Path, help="draw the losses there (PNG)")
    options = parser.parse_args()
    if options.python and not options.report:
        parser.error(f"--python {options.python} has an effect with --report alone: cells are measured by this Python")
    options.python = options.python or platform.python_version()
    measured_here = not options.report or options.device == "auto"
    options.device = choose_device(options.device) if measured_here else torch.device(options.device)
    return options


def names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: needs names of {', '.join(known)}, with commas")
        return text.split(",")

    return parse


def numbers(kind: Callable[[str], float]) -> Callable[[str], list[float]]:
    def parse(text: str) -> list[float]:
        try:
            return [kind(number) for number in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: needs numbers with commas between them") from None

    return parse


if __name__ == "__main__":
    main()
