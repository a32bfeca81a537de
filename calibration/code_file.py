"""The code of the standard library (``calibration/python_code.py``) as a text file, one module after another:

    python -m calibration.code_file code.txt

One interpreter always gives the same file.
"""

import sys
from pathlib import Path

from calibration.python_code import code_documents
from core.failures import exit_code
from core.files import write_text


def main() -> int:
    """The one argument is the file, written whole or not at all; its name should end in .txt."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    return exit_code(lambda: print(write_text(Path(sys.argv[1]), "\n\n".join(code_documents()))))


if __name__ == "__main__":
    sys.exit(main())
