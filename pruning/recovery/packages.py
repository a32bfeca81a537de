"""What recovery needs installed, asked before the first minute."""

from collections.abc import Sequence
from importlib.util import find_spec

from core.errors import UsageError


def check_packages(*, distills: bool, lora: bool, report_to: Sequence[str]) -> None:
    """UsageError, one line, for a package that is missing, and for a tracker that transformers cannot reach."""
    if not distills:
        return
    needed = ["accelerate", "peft"] if lora else ["accelerate"]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        option = "--recover_lora" if missing == ["peft"] else "--recover distill"
        raise UsageError(f"{option} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if not report_to:
        return
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UsageError(f"--report_to {name} is none of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in get_available_reporting_integrations():
            raise UsageError(f"--report_to {name} is not installed here; install it, or leave --report_to out")
