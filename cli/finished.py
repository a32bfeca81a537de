"""Whether a run is there already: exit code 0 where the folder holds a finished run of the same options.

    python -m cli.finished --base_model demo --dataset pydoc --output results/x

``run.json`` is written last and holds the options as they were asked for, so nothing but that file is looked at: it
does not notice a model or a text that changed under the same name. Where measurements are kept does not matter.
"""

import json
import sys
from collections.abc import Sequence

from cli.options import parse_options
from core.files import plain
from core.output import RECORD
from run.settings import Settings

NO_MATTER = ("cache_dir", "overwrite")


def main(argv: Sequence[str] | None = None) -> int:
    return 0 if is_finished(parse_options(argv).settings) else 1


def is_finished(settings: Settings) -> bool:
    """Whether the output folder holds a finished run of these settings; a record that cannot be read is of none."""
    try:
        assert settings.output.output is not None
        asked = json.loads((settings.output.output / RECORD).read_text(encoding="utf-8"))["asked"]
        return bool(_what_matters(asked) == _what_matters(plain(settings.record())))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _what_matters(asked: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in asked.items() if name not in NO_MATTER}


if __name__ == "__main__":
    sys.exit(main())
