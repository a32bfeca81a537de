"""Whether ``--remedy auto`` pays: held-out perplexity of its plan and of the baseline's, paired over windows.

    python -m benchmarks.remedy                                        # the embedded model, offline
    python -m benchmarks.remedy --base_model path/to/model --dataset wikitext2 --ratios 0.2 0.5

For each ratio and seed the program is run twice as people run it (dry, ``--remedy advise`` and ``auto``, one cache).
Both plans are then measured on the evaluation windows, which neither importance nor the trials have seen. Groups are
silenced by hooks, which gives the loss of the pruned model. ``difference`` is auto minus baseline in nats per token
with its standard error over windows; auto loses where it is above twice that error.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.program import run_program
from cli.options import parse_options
from pruning.plan_file import read_plan
from pruning.trials import paired
from run.judging import loss_under
from run.session import Session


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.remedy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base_model", default="demo")
    parser.add_argument("--dataset", default="pydoc")
    parser.add_argument("--importance_method", default="taylor")
    parser.add_argument("--ratios", nargs="+", default=["0.2", "0.3", "0.5"])
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    options = parser.parse_args()
    base = ["--base_model", options.base_model, "--dataset", options.dataset]
    base += ["--importance_method", options.importance_method, "--reconstruct", "none"]
    settings = parse_options(base).settings
    session = Session(settings)
    session.read_windows()
    model, windows = session.dense(), session.evaluation[options.dataset]
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for ratio in options.ratios:
            for seed in options.seeds:
                found = {}
                for remedy in ("advise", "auto"):
                    output = Path(work) / f"{ratio}-{seed}-{remedy}"
                    plan_into(output, [*base, "--pruning_ratio", ratio, "--seed", seed, "--remedy", remedy], work)
                    plan = read_plan(output / "analysis" / "pruning_plan.json", session.architecture)
                    found[remedy] = loss_under(model, session.family, plan, windows, None, remedy)
                taken = json.loads((output / "analysis" / "remedy.json").read_text())["taken"]
                rows.append(row(ratio, seed, found["advise"], found["auto"], taken))
                print(rows[-1], file=sys.stderr, flush=True)
    print("| ratio | seed | baseline | auto | difference, nats/token | auto loses | taken |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


def plan_into(output: Path, arguments: list[str], work: str) -> None:
    dry = ["--dry_run", "--run_evaluation", "none", "--cache_dir", f"{work}/cache", "--output", str(output)]
    run_program([*arguments, *dry])


def row(ratio: str, seed: str, baseline: np.ndarray, auto: np.ndarray, taken: dict[str, Any]) -> str:
    mean, error = paired(auto, baseline)
    before, after = (math.exp(float(np.mean(nll))) for nll in (baseline, auto))
    loses = "yes" if mean > 2 * error else "no"
    flags = f"`{taken['flags']}`" if taken["flags"] else "no transform"
    return f"| {ratio} | {seed} | {before:.2f} | {after:.2f} | {mean:+.4f} ± {error:.4f} | {loses} | {flags} |"


if __name__ == "__main__":
    sys.exit(main())
