"""``python -m diagnostics.compare``: an older name of ``global-pruning compare``."""

import importlib
import sys

if __name__ == "__main__":
    sys.exit(importlib.import_module("cli.compare").main())
