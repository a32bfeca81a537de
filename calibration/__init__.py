"""Calibration: a dataset's name or path in, token windows out; calibration and evaluation share no text."""

from calibration.drawing import calibration_windows, draw_windows, evaluation_windows, training_windows
from calibration.texts import check_dataset

__all__ = ["calibration_windows", "check_dataset", "draw_windows", "evaluation_windows", "training_windows"]
