#!/usr/bin/env python3
"""Does a saved folder load in older releases of transformers? By hand: ``python tests/compat/releases.py --work DIR``.

Saves a pruned folder of every family with the installed release. For each older one it installs transformers and its
dependencies into a folder of DIR (about 250 MB each, from the package index, used again the next time) and puts that
before the installed packages, so torch, accelerate and peft stay the installed ones. There it runs
``tests/support/round_trips.py`` and prints a Markdown table: how many folders pass each check, and what did not.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS / "support")]  # as pytest has it, so that the tests' own models can be built here

from pruned_folders import prune_and_save  # noqa: E402
from round_trips import CHECKS  # noqa: E402
from tiny_models import CONFIGS  # noqa: E402 (after the line above)

Table = dict[str, dict[str, str]]  # folder -> check -> outcome


def main() -> None:
    options = parse_arguments()
    folders = [str(prune_and_save(options.work / "folders", name)) for name in sorted(CONFIGS)]
    tables = {version("transformers"): check(None, folders, options.work / "cache-installed")}
    for release in options.releases:
        packages = install(options.work / f"transformers-{release}", release)
        tables[release] = check(packages, folders, options.work / f"cache-{release}")
    print(report(tables))


def install(packages: Path, release: str) -> Path:
    """That release and what it depends on, in a folder of their own; numpy as installed, which torch was built for."""
    complete = packages / ".complete"
    if not complete.is_file():
        wanted = [f"transformers=={release}", f"numpy=={version('numpy')}"]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", packages, *wanted], check=True)
        complete.touch()
    return packages


def check(packages: Path | None, folders: list[str], cache: Path) -> Table:
    """Run the checks with other packages; the modules cache is its own, so that no release sees another's copy."""
    settings = {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if packages is not None:
        settings["PYTHONPATH"] = str(packages)
    done = subprocess.run(
        [sys.executable, TESTS / "support" / "round_trips.py", *folders],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | settings,
    )
    table: Table = json.loads(done.stdout.splitlines()[-1])
    return table


def report(tables: dict[str, Table]) -> str:
    lines = [f"| transformers | {' | '.join(CHECKS)} |", "|---|" + "---|" * len(CHECKS)]
    failures = []
    for release, table in tables.items():
        cells = []
        for name in CHECKS:
            found = {folder: outcomes[name] for folder, outcomes in table.items()}
            tried = {folder: text for folder, text in found.items() if not text.startswith("skipped")}
            passed = sum(text == "ok" for text in tried.values())
            cells.append(f"{passed} of {len(tried)}" if tried else "not installed")
            failures += [f"- {release}, {name}, {folder}: {text}" for folder, text in tried.items() if text != "ok"]
        lines.append(f"| {release} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *failures])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for packages and models")
    parser.add_argument("--releases", nargs="*", default=["5.17.0", "5.10.4", "5.2.0"], help="older releases to try")
    return parser.parse_args()


if __name__ == "__main__":
    main()
