"""Calibration: a dataset's name or path in, token windows out; calibration and evaluation share no text."""

from calibration.texts import NAMED as _NAMED
from calibration.texts import check_dataset
from calibration.windows import calibration_windows, evaluation_windows

DATASETS = tuple(sorted(_NAMED))

__all__ = ["DATASETS", "calibration_windows", "check_dataset", "evaluation_windows"]
