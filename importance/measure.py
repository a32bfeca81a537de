"""One call for every criterion of the registry."""

from importlib import import_module
from typing import Any

from core import kernels
from core.criteria import CRITERIA, Criterion
from core.engine import engine_of
from core.families import Family
from core.groups import Architecture
from core.measured import Importance
from core.windows import TokenWindows


def measure_importance(
    model: Any,
    family: Family,
    architecture: Architecture,
    windows: TokenWindows | None,
    *,
    criterion: str,
    gradient_reduction: str = "sequence",
    batch_size: int | None = None,
) -> Importance:
    """Importance of every group, float64 (G,), by one of CRITERIA; windows may be None where it reads no text.

    gradient_reduction and batch_size reach the criteria that know them. The model is left exactly as found, also after
    an exception. Raises NumericalError on NaN or Inf.
    """
    kernels.remind(engine_of(model).device)
    chosen = CRITERIA[criterion]
    arguments: list[Any] = [model, family, architecture]
    if chosen.reads_text:
        assert windows is not None, f"{criterion} needs calibration windows"
        arguments.append(windows)
    keywords: dict[str, Any] = dict(chosen.keywords)
    if chosen.uses_gradient_reduction:
        keywords["reduction"] = gradient_reduction
    if chosen.batches:
        keywords["batch_size"] = batch_size
    importance: Importance = _function(chosen)(*arguments, **keywords)
    return importance


def _function(criterion: Criterion) -> Any:
    module, _, name = criterion.measured_by.partition(":")
    return getattr(import_module(module), name)
