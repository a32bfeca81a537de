"""``python -m models.gguf``: an older name of ``global-pruning gguf``."""

import importlib
import sys

if __name__ == "__main__":
    sys.exit(importlib.import_module("cli.gguf").main())
