"""What scoring costs when experiments share it: seven runs with the cache against one run without.

    python -m benchmarks.matrix                                        # the embedded model, offline
    python -m benchmarks.matrix --base_model path/to/model --dataset wikitext2

The seven experiments of ``run_experiments.sh`` that calibrate on one text run dry, one after another, from an empty
cache. Then the one that needs most, ``temperature_1_norm_log``, runs alone without a cache. Scoring is what
``run.json`` says of windows, importance, prior, plan and the cache itself; loading, reports and evaluation are not in
it. The wanted bound on the ratio is LIMIT. Nothing else should run on the machine meanwhile.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from benchmarks.program import run_program

ROOT = Path(__file__).resolve().parent.parent
SCORING = ("windows", "cache", "importance", "prior", "plan")
LIMIT = 1.3
ALONE = "temperature_1_norm_log"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base_model", default="demo")
    parser.add_argument("--dataset", default="pydoc")
    parser.add_argument("--importance_method", default="taylor")
    options = parser.parse_args()
    base = ["--base_model", options.base_model, "--dataset", options.dataset]
    base += ["--importance_method", options.importance_method, "--dry_run", "--run_evaluation", "none"]
    flags = shared_experiments((ROOT / "run_experiments.sh").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as work:
        cached = {
            name: scoring([*base, *extra, "--cache_dir", f"{work}/cache"], Path(work) / name)
            for name, extra in flags.items()
        }
        alone = scoring([*base, *flags[ALONE], "--cache_dir", "none"], Path(work) / "alone")
    print(table(cached, alone))
    return 0


def shared_experiments(script: str) -> dict[str, list[str]]:
    """Name -> flags of the experiments that calibrate on DATASET, as the script has them."""
    cases = re.findall(r"^ +(\w+)\) echo (.+) ;;$", script, flags=re.M)
    return {"baseline": [], **{name: flags.split() for name, flags in cases}}


def scoring(arguments: list[str], output: Path) -> dict[str, float]:
    """Seconds of each stage of SCORING in one run, in a process of its own."""
    run_program([*arguments, "--output", str(output)])
    timings = json.loads((output / "run.json").read_text(encoding="utf-8"))["timings_s"]
    found = {stage: float(timings.get(stage, 0.0)) for stage in SCORING}
    print(f"{output.name}: {sum(found.values()):.2f} s", file=sys.stderr, flush=True)
    return found


def table(cached: dict[str, dict[str, float]], alone: dict[str, float]) -> str:
    """Markdown: a row an experiment, seconds a stage, and the ratio that is to be kept."""
    rows = [f"| experiment | {' | '.join(SCORING)} | sum, s |", "|---|" + "---|" * (len(SCORING) + 1)]
    for name, found in {**cached, f"{ALONE}, no cache": alone}.items():
        rows.append(f"| {name} | {' | '.join(f'{found[s]:.2f}' for s in SCORING)} | {sum(found.values()):.2f} |")
    together, one = sum(sum(found.values()) for found in cached.values()), sum(alone.values())
    rows.append(f"\n{len(cached)} runs {together:.2f} s, one run {one:.2f} s: {together / one:.2f} ×, wanted ≤ {LIMIT}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
