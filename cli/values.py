"""Types of option values for argparse: each message names the value and its bounds."""

import argparse
import math
import re
from collections.abc import Callable

from core.errors import UsageError
from core.sources import named_sources


def number(
    kind: Callable[[str], float], low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> Callable[[str], float]:
    """An argparse type: a number of ``kind`` between the bounds; the message names the value and the bounds."""
    left, right = "(" if open_low else "[", ")" if open_high or math.isinf(high) else "]"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        above = value > low if open_low else value >= low
        below = value < high if open_high or math.isinf(high) else value <= high
        if not (above and below):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} in {left}{low:g}, {high:g}{right}")
        return value

    return parse


def tau(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number (nats per token), inf or auto")
    return value


def batch_size(text: str) -> int | None:
    return None if text == "auto" else int(number(int, 1, math.inf)(text))


def shard_size(text: str) -> str:
    if not re.fullmatch(r"(?=.*[1-9])\d+(\.\d+)?[KMGT]B", text.upper()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size above 0 in KB, MB, GB or TB, e.g. 200MB")
    return text.upper()


def one_of(*allowed: str, alone: str = "") -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in (*allowed, alone)]
        if unknown or not names or (alone in names and len(names) > 1):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list with commas of {', '.join(allowed)}, or {alone} alone"
            )
        return names

    return parse


def datasets(text: str) -> list[str]:
    """Names as in ``--dataset``; a path may hold commas. Shares mean nothing here, so that one value serves both."""
    try:
        return list(named_sources(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--dataset ")) from error


def names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} is empty; give a list with commas")
    return names
