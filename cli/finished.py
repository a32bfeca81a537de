"""Whether a run is there already: exit code 0 where the folder holds a finished run of the same options.

    python -m cli.finished --base_model demo --dataset pydoc --output results/x

``run.json`` is written last and holds the options as they were asked for, so nothing but that file is looked at: it
does not notice a model or a text that changed under the same name. Where measurements are kept does not matter.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from cli.options import parse_options
from cli.record import resolved
from core.files import plain
from core.output import RECORD

NO_MATTER = ("cache_dir", "overwrite")


def main(argv: Sequence[str] | None = None) -> int:
    return 0 if is_finished(parse_options(argv)) else 1


def is_finished(options: argparse.Namespace) -> bool:
    """options: as ``parse_options`` gives them. A record that cannot be read belongs to no finished run."""
    try:
        found = json.loads((options.output / RECORD).read_text(encoding="utf-8"))["asked"]
        return bool(_what_matters(found) == _what_matters(plain(resolved(options))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _what_matters(asked: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in asked.items() if name not in NO_MATTER}


if __name__ == "__main__":
    sys.exit(main())
