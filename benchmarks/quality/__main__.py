"""Extra loss of pruned models: this project's methods beside published ones, same models, windows, budget and text.

    python -m benchmarks.quality --models demo --seeds 0                       # one model, one seed
    python -m benchmarks.quality --models demo,qwen2,gemma3 --seeds 0,1,2      # three of each
    python -m benchmarks.quality --models demo,qwen2,gemma3 --seeds 3,4,5 --part confirmation   # docs/benchmarks.md

Models are small but really trained (models/demo, benchmarks/models). Calibration: 64 windows of 256 tokens of the
calibration split of ``pydoc``, drawn by seed. Budget: the ratio of the prunable parameters. Loss: nats per token on
held-out ``pydoc`` and on the standard library's code, of the dense model with the removed groups silenced, less that of
the dense model. Choose by ``development`` and seeds 0 to 2; ``confirmation`` holds windows and modules that it lacks,
for figures that nothing was chosen by. A run that is interrupted goes on where it stopped: every finished cell is a
line of ``--json``.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from tqdm import tqdm

from benchmarks.quality.cells import DENSE, Cell, Setting, append_cell, measure, read_cells, weights_of
from benchmarks.quality.methods import METHODS, Case
from benchmarks.quality.picture import draw_losses
from benchmarks.quality.table import tables
from benchmarks.quality.texts import DEVELOPMENT, PARTS, held_out_windows
from calibration import calibration_windows
from core.errors import PruningError
from core.files import write_text
from models.loading import check_model, load_model

CHECKPOINT = ["*.json", "*.safetensors", "*.model", "*.txt"]
ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    try:
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
                for cell in cells_of(model, seed, todo, options, bar.set_postfix_str):
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


def folder_of(model: str) -> Path:
    """Of a model of this repository by its name, else of a checkpoint: a folder, or a hub id."""
    known = known_models().get(model)
    if known is not None:
        return known
    check_model(model)  # says in a line what is wrong with it
    return Path(model) if Path(model).is_dir() else Path(snapshot_download(model, allow_patterns=CHECKPOINT))


def known_models() -> dict[str, Path]:
    trained = sorted(path.parent for path in (ROOT / "benchmarks" / "models").glob("*/config.json"))
    return {"demo": ROOT / "models" / "demo"} | {folder.name: folder for folder in trained}


def settings(options: argparse.Namespace) -> list[Setting]:
    """Every cell asked for, and the dense model once a model and seed."""
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
            python=platform.python_version(),
        )
        for model, weights in ((model, weights_of(folder_of(model))) for model in options.models)
        for seed in options.seeds
        for method, ratio in asked
    ]


def cells_of(
    model: str, seed: int, todo: list[Setting], options: argparse.Namespace, say: Callable[[str], None]
) -> Iterator[Cell]:
    if not todo:
        return
    source = check_model(str(folder_of(model)))
    loaded = load_model(source, torch.device("cpu"), torch.float32)
    windows = calibration_windows("pydoc", source.tokenizer, options.samples, options.seq_len, seed)
    texts = held_out_windows(source.tokenizer, options.part, options.eval_samples, options.seq_len)
    case = Case(loaded, source.family, source.architecture, windows, seed)
    for setting in todo:
        say(f"{model}, seed {seed}: {setting.method} {setting.ratio:.0%}")
        yield measure(setting, case, texts)


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
        help=f"of {', '.join(known_models())}, or folders and hub ids, in float32 on the CPU (demo)",
    )
    parser.add_argument("--ratios", type=numbers(float), default=[0.2, 0.3, 0.5], help="of prunable (0.2,0.3,0.5)")
    parser.add_argument("--seeds", type=numbers(int), default=[0], help="of the calibration windows (0)")
    parser.add_argument(
        "--methods", type=names(tuple(METHODS)), default=list(METHODS), help=f"of {', '.join(METHODS)} (all)"
    )
    parser.add_argument("--samples", type=int, default=64, help="calibration windows (%(default)s)")
    parser.add_argument("--seq_len", type=int, default=256, help="tokens a window, also of the texts (%(default)s)")
    parser.add_argument("--part", choices=PARTS, default=DEVELOPMENT, help="of the texts (%(default)s)")
    parser.add_argument("--eval_samples", type=int, default=96, help="windows of each text, at most (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("results/quality.jsonl"), help="results (%(default)s)")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: tables and picture of what --json holds"
    )
    parser.add_argument("--table", type=Path, help="write the Markdown tables there too")
    parser.add_argument("--picture", type=Path, help="draw the losses there (PNG)")
    return parser.parse_args()


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
