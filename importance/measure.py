"""One call for every criterion."""

from typing import Any

from core.families import Family
from core.groups import Architecture
from core.measures import Importance
from core.windows import TokenWindows
from importance.fisher import fisher_importance
from importance.magnitude import magnitude_importance
from importance.obs import obs_importance
from importance.taylor import taylor_importance
from importance.wanda import wanda_importance

CRITERIA = ("taylor", "taylor_2nd", "fisher", "obs", "wanda", "magnitude")


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
    """Importance of every group, float64 (G,), by one of CRITERIA; windows may be None for ``magnitude`` alone.

    The model is left exactly as found, also after an exception. Raises NumericalError on NaN or Inf.
    """
    if criterion == "magnitude":
        return magnitude_importance(model, family, architecture)
    assert windows is not None, f"{criterion} needs calibration windows"
    if criterion == "fisher":
        return fisher_importance(model, family, architecture, windows, batch_size=batch_size)
    if criterion == "obs":
        return obs_importance(model, family, architecture, windows, batch_size=batch_size)
    if criterion == "wanda":
        return wanda_importance(model, family, architecture, windows, batch_size=batch_size)
    return taylor_importance(
        model,
        family,
        architecture,
        windows,
        second_order=criterion == "taylor_2nd",
        reduction=gradient_reduction,
    )
