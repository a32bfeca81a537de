"""What ``--recover`` takes back: extra loss of a pruned model, repaired and recovered, at home and elsewhere.

    python -m benchmarks.recovery --ratios 0.5                                       # the embedded model
    python -m benchmarks.recovery --model qwen2 --recover blocks --part confirmation
    python -m benchmarks.recovery --recover distill blocks,distill --tokens 500000

Models, texts and windows are those of ``benchmarks.quality``: ``obs`` chooses at a ratio of the prunable parameters,
the default repair follows, then each recovery that is named. Extra loss is nats per token over the dense model, on
held-out ``pydoc`` and on code, with its standard error over windows. Choose by ``development``; ``confirmation`` holds
windows that nothing was chosen by. CPU seconds are those of the recovery alone, text and teacher included.
"""

import argparse
import sys
import time
from typing import Any

import numpy as np

import global_pruning as gp
from benchmarks.quality.models import folder_of
from benchmarks.quality.texts import DEVELOPMENT, PARTS, held_out_windows
from core.windows import TokenWindows
from evaluation.perplexity import window_nll
from models.loading import check_model
from pruning.trials import paired


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as benchmarks.quality names it (%(default)s)")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.3, 0.5], help="of prunable (0.3 0.5)")
    parser.add_argument("--recover", nargs="+", default=["blocks"], help="each as --recover takes it (blocks)")
    parser.add_argument("--tokens", type=int, default=500_000, help="that distillation trains on (%(default)s)")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows of 256 tokens (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=PARTS, default=DEVELOPMENT, help="of the texts (%(default)s)")
    parser.add_argument("--eval_samples", type=int, default=48, help="windows of each text (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="as --dtype (%(default)s)")
    asked = parser.parse_args()
    name = str(folder_of(asked.model))
    session = gp.open(
        name, dataset="pydoc", num_samples=asked.samples, seq_len=256, seed=asked.seed, dtype=asked.dtype, say=gp.silent
    )
    texts = held_out_windows(check_model(name).tokenizer, asked.part, asked.eval_samples, 256)
    dense = losses_of(session.model, texts)
    print(f"{asked.model}, {asked.part}, dense: " + ", ".join(f"{t} {v.mean():.3f}" for t, v in dense.items()))
    print(f"\n| ratio | recovery | {' | '.join(texts)} | mean | CPU s |\n|---|---|{'---:|' * len(texts)}---:|---:|")
    for ratio in asked.ratios:
        plan = session.plan(session.score("obs"), ratio=ratio, ratio_of="prunable")
        for how in ("none", *asked.recover):
            small, start = session.prune(plan), time.process_time()
            session.recover(small, plan, how, tokens=asked.tokens)
            seconds = time.process_time() - start
            print(row(ratio, how, losses_of(small, texts), dense, seconds), flush=True)
    return 0


def losses_of(model: Any, texts: dict[str, TokenWindows]) -> dict[str, np.ndarray]:
    """float64 (N,) by text: nats per token of each window."""
    return {
        name: window_nll(model, windows.ids, batch_size=8, description=name) / (windows.seq_len - 1)
        for name, windows in texts.items()
    }


def row(ratio: float, how: str, found: dict[str, np.ndarray], dense: dict[str, np.ndarray], seconds: float) -> str:
    extra = {name: paired(values, dense[name]) for name, values in found.items()}
    cells = [f"{mean:.4f} ± {error:.4f}" for mean, error in extra.values()]
    mean = float(np.mean([value for value, _ in extra.values()]))
    return f"| {ratio:.0%} | {how} | {' | '.join(cells)} | {mean:.4f} | {seconds:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
