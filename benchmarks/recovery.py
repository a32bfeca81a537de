"""What a calibration text and ``--recover`` are worth: extra loss of a pruned model, at home and elsewhere.

    python -m benchmarks.recovery --ratios 0.5 --recover blocks distill                  # the embedded model
    python -m benchmarks.recovery --model qwen2 --dataset pydoc,self --recover blocks,distill --part confirmation
    python -m benchmarks.recovery --model smollm2 --dataset wiki.valid.txt wiki.valid.txt,self --home wiki.test.txt \\
        --ratio_of total --ratios 0.2 --seq_len 512 --eval_seq_len 1024 --eval_samples 8 --dtype bfloat16

Through the Python API, as a user would: ``obs`` chooses, the default repair follows, then each recovery that is named,
with a row after each of its steps. Extra loss is nats per token over the dense model with its standard error over
windows: on 40 windows of ``--home``, where a file is named, on held-out ``pydoc``, on the standard library's code, and
on text that the dense model wrote. Choose by ``development``; ``confirmation`` holds windows that nothing was chosen
by. Seconds are those of pruning or of the recovery alone, text and teacher included, by the clock on a GPU and of the
CPU elsewhere; what an earlier run left in the program's cache is not measured again.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import global_pruning as gp
from benchmarks.quality.drawing import Texts
from benchmarks.quality.models import folder_of, known_models
from benchmarks.quality.texts import DEVELOPMENT, IN_DOMAIN, OUT_OF_DOMAIN, PARTS
from calibration import evaluation_windows
from core.errors import PruningError
from core.names import RATIO_OF, SELF
from core.windows import TokenWindows
from evaluation.perplexity import window_nll
from models.loading import ModelSource, check_model, choose_device
from pruning.trials import paired
from run.surroundings import surroundings

HOME_WINDOWS = 40
Row = tuple[str, float, str, dict[str, np.ndarray], float]  # text, ratio, recovery, losses, seconds


def main() -> int:
    asked = parse_arguments()
    try:
        asked.device = choose_device(asked.device)
        with surroundings(asked.seed):
            measure(asked)
    except PruningError as error:
        sys.exit(f"error: {error}")
    return 0


def measure(asked: argparse.Namespace) -> None:
    name = str(folder_of(asked.model))
    source = check_model(name)
    texts: dict[str, TokenWindows] = {}
    dense: dict[str, np.ndarray] = {}
    for dataset in asked.dataset:
        session = gp.open(
            name,
            dataset=dataset,
            num_samples=asked.samples,
            seq_len=asked.seq_len,
            seed=asked.seed,
            device=str(asked.device),
            dtype=asked.dtype,
            say=gp.silent,
        )
        if not texts:
            texts = held_out(asked, source, session.model)
            dense = losses_of(session.model, texts)
            print(head(asked, dense), flush=True)
        for found in rows(asked, session, dataset, texts):
            print(line(found, dense), flush=True)


def rows(asked: argparse.Namespace, session: gp.Session, dataset: str, texts: dict[str, TokenWindows]) -> Iterator[Row]:
    clock = clock_of(asked.device)
    for ratio in asked.ratios:
        start = clock()
        plan = session.plan(session.score("obs"), ratio=ratio, ratio_of=asked.ratio_of)
        repaired = session.prune(plan)
        seconds = clock() - start
        yield dataset, ratio, "none", losses_of(repaired, texts), seconds
        for steps in asked.recover:
            small, named = copy.deepcopy(repaired), steps.split(",")
            for done, step in enumerate(named, 1):
                start = clock()
                session.recover(small, plan, step, tokens=asked.tokens)
                seconds = clock() - start
                yield dataset, ratio, ",".join(named[:done]), losses_of(small, texts), seconds


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds of the CPU, so that what else runs on it counts less, or by the clock where a GPU works meanwhile."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def held_out(asked: argparse.Namespace, source: ModelSource, dense: Any) -> dict[str, TokenWindows]:
    drawn = Texts.of(source, dense, asked.eval_seq_len)
    found = drawn.held_out((IN_DOMAIN, OUT_OF_DOMAIN, SELF), asked.part, asked.eval_samples)
    if asked.home is None:
        return found
    calibrating = asked.dataset[0].split(",")[0]
    home = evaluation_windows(asked.home, source.tokenizer, asked.eval_seq_len, HOME_WINDOWS, calibrating)
    return {"home": home} | found


def losses_of(model: Any, texts: dict[str, TokenWindows]) -> dict[str, np.ndarray]:
    """float64 (N,) by text: nats per token of each window."""
    return {
        name: window_nll(model, windows.ids, batch_size=None, description=name) / (windows.seq_len - 1)
        for name, windows in texts.items()
    }


def head(asked: argparse.Namespace, dense: dict[str, np.ndarray]) -> str:
    found = ", ".join(f"{name} {values.mean():.3f}" for name, values in dense.items())
    unit = "CPU s" if asked.device.type == "cpu" else "s"
    return (
        f"{asked.model}, {asked.part}, dense: {found}\n\n"
        f"| calibration text | removed | recovery | {' | '.join(dense)} | mean | {unit} |\n"
        f"|---|---|---|{'---:|' * len(dense)}---:|---:|"
    )


def line(found: Row, dense: dict[str, np.ndarray]) -> str:
    dataset, ratio, recovery, losses, seconds = found
    extra = {name: paired(values, dense[name]) for name, values in losses.items()}
    cells = [f"{mean:.4f} ± {error:.4f}" for mean, error in extra.values()]
    mean = float(np.mean([value for value, _ in extra.values()]))
    return f"| {dataset} | {ratio:.0%} | {recovery} | {' | '.join(cells)} | {mean:.4f} | {seconds:.0f} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="demo", help=f"of {', '.join(known_models())}, a folder or a hub id (%(default)s)")
    add("--dataset", nargs="+", default=[IN_DOMAIN], help="calibration texts, each as the program takes it (pydoc)")
    add("--home", help="a file to evaluate on beside the other texts")
    add("--ratios", nargs="+", type=float, default=[0.3, 0.5], help="(0.3 0.5)")
    add("--ratio_of", choices=RATIO_OF, default="prunable", help="parameters (%(default)s)")
    add("--recover", nargs="*", default=[], help="each as --recover takes it (none)")
    add("--tokens", type=int, default=500_000, help="that distillation trains on (%(default)s)")
    add("--samples", type=int, default=64, help="calibration windows (%(default)s)")
    add("--seq_len", type=int, default=256, help="tokens a window (%(default)s)")
    add("--seed", type=int, default=0, help="of the calibration windows (%(default)s)")
    add("--part", choices=PARTS, default=DEVELOPMENT, help="of the texts (%(default)s)")
    add("--eval_samples", type=int, default=48, help="windows of each text (%(default)s)")
    add("--eval_seq_len", type=int, default=256, help="tokens of each (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s: a GPU where there is one)")
    add("--dtype", default="auto", help="as --dtype (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
