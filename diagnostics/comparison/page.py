from pathlib import Path
from typing import Any


def write_comparison_page(path: Path, *a: Any) -> Path:
    return path
