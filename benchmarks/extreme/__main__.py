"""Build a model that global ranking ruins, and prune it with and without the remedy; see docs/extreme-pruning.md.

    python -m benchmarks.extreme build --output results/extreme/model
    python -m benchmarks.extreme walk --base_model results/extreme/model --pruning_ratio 0.3 --output results/extreme
    python -m benchmarks.extreme walk --base_model demo --pruning_ratio 0.5 --output results/natural

``build`` goes on where it was interrupted and leaves its training state beside the model; ``walk`` takes any model,
removes the ratio of its prunable parameters, and skips the runs that are there. As above no network is needed.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.extreme.build import STEPS, build
from benchmarks.extreme.walk import walk


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.extreme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="train and widen the model")
    building.add_argument("--output", type=Path, required=True, help="folder for the model")
    building.add_argument("--steps", type=int, default=STEPS, help="of 2,048 tokens (%(default)s)")
    building.add_argument("--seed", type=int, default=0, help="of all windows (%(default)s)")
    walking = commands.add_parser("walk", help="baseline, remedies, comparison")
    walking.add_argument("--base_model", required=True, help="a folder, a hub id, or demo")
    walking.add_argument("--pruning_ratio", required=True, help="of the prunable parameters")
    walking.add_argument("--output", type=Path, required=True, help="folder for the runs")
    options = parser.parse_args()
    if options.command == "build":
        build(options.output, options.steps, options.seed)
    else:
        print(walk(options.base_model, options.pruning_ratio, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
