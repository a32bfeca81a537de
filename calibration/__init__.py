"""Calibration: a dataset's name or path in, token windows out; calibration and evaluation share no text."""

from calibration.texts import check_dataset
from calibration.windows import calibration_windows, draw_windows, evaluation_windows

__all__ = ["calibration_windows", "check_dataset", "draw_windows", "evaluation_windows"]
