"""Charts as geometry: where each mark stands in its SVG, in units of the viewBox. The template only draws.

Colours are CSS classes (``attention``, ``mlp``, ``layer``, ``run-0`` …), so that one file fits both themes; shapes
differ where colours do, and every mark carries its exact value as text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 260.0, 62.0, 12.0, 14.0, 40.0
LAYER_WIDTH, LEAST_WIDTH = 18.0, 640.0
SHAPES = ("circle", "square", "diamond")
MOST_NUMBERS = 16  # layer numbers along the axis


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """x, y: its centre; for bars x, y, width, height of the rectangle. tip: the exact value in words."""

    x: float
    y: float
    tip: str
    width: float = 0.0
    height: float = 0.0
    css: str = ""


@dataclass(frozen=True)
class Series:
    """line: path through the marks, empty where they are not joined. band: path of a range around them."""

    name: str
    css: str
    shape: str
    marks: tuple[Mark, ...]
    line: str = ""
    band: str = ""


@dataclass(frozen=True)
class Level:
    """A horizontal line over the whole plot, named at its right end."""

    y: float
    label: str
    css: str


@dataclass(frozen=True)
class Chart:
    title: str
    description: str
    y_label: str
    x_label: str
    width: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    height: float = HEIGHT

    @property
    def plot(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge of the plot."""
        return LEFT, TOP, self.width - RIGHT, self.height - BOTTOM


@dataclass(frozen=True)
class Values:
    """One quantity by layer; None where a layer has none. low, high: a range around it, if there is one."""

    name: str
    css: str
    by_layer: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Axis:
    """Maps values to positions between ``start`` (of low) and ``end`` (of high)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: tuple[float, ...] = field(default=())

    def __call__(self, value: float) -> float:
        low, high, v = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return round(self.start + (v - low) / (high - low) * (self.end - self.start), 2)


def axis(values: Sequence[float], start: float, end: float, *, log: bool = False) -> Axis:
    """Room for all values with round ends; logarithmic only if asked and every value is positive."""
    low, high = min(values), max(values)
    if log and low > 0:
        return _log_axis(low, high, start, end)
    step = _round_step((high - low) or abs(high) or 1.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    last += first == last
    ticks = tuple(float(f"{n * step:.10g}") for n in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, False, ticks)


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, about a quarter of the span."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(float(f"{factor * power:.10g}") for factor in (1, 2, 5, 10) if factor * power >= span / 4)


def _log_axis(low: float, high: float, start: float, end: float) -> Axis:
    """Ticks at 1, 2, 5 over up to two decades, else at powers of ten, about five of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first <= 2:
        marks = [float(f"{factor}e{power}") for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
        bottom = max(mark for mark in marks if mark <= low)
        top = min(mark for mark in [*marks, 10.0 ** (last + 1)] if mark >= high and mark > bottom)
        return Axis(bottom, top, start, end, True, tuple(mark for mark in marks if bottom <= mark <= top))
    every = max(1, round((last - first) / 5))
    powers = range(first, last + 1, every)
    return Axis(float(f"1e{first}"), float(f"1e{last}"), start, end, True, tuple(float(f"1e{p}") for p in powers))


def short(value: float) -> str:
    """Axis labels: ``0.05``, ``1e-7``, ``20,000``."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.10g}"


def layer_bars(
    title: str, description: str, values: Values, highlighted: Sequence[int], levels: Sequence[tuple[float, str, str]]
) -> Chart:
    """A bar a layer, fractions from 0 to 1 on an axis in percent. levels: (fraction, name, CSS class)."""
    width, x = _layer_axis(len(values.by_layer))
    y = Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP, ticks=(0.0, 0.25, 0.5, 0.75, 1.0))
    wide = round(0.7 * (x(1) - x(0)), 2)
    bars = tuple(
        Mark(
            round(x(layer) - wide / 2, 2),
            y(rate),
            f"layer {layer}: {100 * rate:.2f} %",
            wide,
            round(y(0) - y(rate), 2),
            "extreme" if layer in highlighted else "",
        )
        for layer, rate in enumerate(values.by_layer)
        if rate is not None
    )
    return Chart(
        title=title,
        description=description,
        y_label="removed, %",
        x_label="decoder layer",
        width=width,
        x_ticks=_layer_ticks(len(values.by_layer), x),
        y_ticks=tuple(Tick(y(tick), f"{100 * tick:g}") for tick in y.ticks),
        series=(Series(values.name, values.css, "bar", bars),),
        levels=tuple(Level(y(at), label, css) for at, label, css in levels),
    )


def layer_lines(title: str, description: str, y_label: str, several: Sequence[Values], *, log: bool) -> Chart | None:
    """A line a quantity over the layers; None where no value is known. On a log axis only positive values stand."""
    known = [v for values in several for v in (*values.by_layer, *values.low, *values.high) if v is not None]
    if log:
        known = [v for v in known if v > 0]
    if not any(v in known for values in several for v in values.by_layer):
        return None
    num_layers = max(len(values.by_layer) for values in several)
    width, x = _layer_axis(num_layers)
    y = axis(known, HEIGHT - BOTTOM, TOP, log=log)
    series = tuple(
        Series(
            values.name,
            values.css,
            SHAPES[index % len(SHAPES)],
            tuple(_layer_mark(x, y, layer, v, values.name) for layer, v in enumerate(values.by_layer) if _fits(v, y)),
            _path(x, y, values.by_layer),
            _band(x, y, values.low, values.high),
        )
        for index, values in enumerate(several)
    )
    y_ticks = tuple(Tick(y(tick), short(tick)) for tick in y.ticks)
    return Chart(title, description, y_label, "decoder layer", width, _layer_ticks(num_layers, x), y_ticks, series)


def scatter(
    title: str, description: str, labels: tuple[str, str], points: Sequence[tuple[str, float, float, str]]
) -> Chart:
    """A mark a point. labels: of x and y. points: (name, x, y, exact values in words); each gets its own colour."""
    width = LEAST_WIDTH
    room = 0.04 * max(abs(point[1]) for point in points)  # so that no mark stands on the right edge
    x = axis([value for point in points for value in (point[1], point[1] + room)], LEFT, width - RIGHT)
    y = axis([point[2] for point in points], HEIGHT - BOTTOM, TOP)
    series = tuple(
        Series(name, f"run-{index % 5}", SHAPES[index // 5 % len(SHAPES)], (Mark(x(px), y(py), tip),))
        for index, (name, px, py, tip) in enumerate(points)
    )
    x_ticks, y_ticks = (tuple(Tick(a(tick), short(tick)) for tick in a.ticks) for a in (x, y))
    return Chart(title, description, labels[1], labels[0], width, x_ticks, y_ticks, series)


def _layer_axis(num_layers: int) -> tuple[float, Callable[[float], float]]:
    width = max(LEAST_WIDTH, LEFT + RIGHT + LAYER_WIDTH * num_layers)
    return width, Axis(-0.5, num_layers - 0.5, LEFT, width - RIGHT)


def _layer_ticks(num_layers: int, x: Callable[[float], float]) -> tuple[Tick, ...]:
    step = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100, num_layers) if num_layers <= MOST_NUMBERS * n * 1.5)
    return tuple(Tick(x(layer), str(layer)) for layer in range(0, num_layers, step))


def _layer_mark(x: Callable[[float], float], y: Axis, layer: int, value: float | None, name: str) -> Mark:
    assert value is not None
    return Mark(x(layer), y(value), f"layer {layer}: {name} {value:.4g}")


def _fits(value: float | None, y: Axis) -> bool:
    return value is not None and (value > 0 or not y.log)


def _path(x: Callable[[float], float], y: Axis, values: Sequence[float | None]) -> str:
    """A line broken where a value is missing."""
    steps, pen = [], "M"
    for layer, value in enumerate(values):
        if value is None or not _fits(value, y):
            pen = "M"
            continue
        steps.append(f"{pen}{x(layer):g},{y(value):g}")
        pen = "L"
    return " ".join(steps)


def _band(x: Callable[[float], float], y: Axis, low: Sequence[float | None], high: Sequence[float | None]) -> str:
    """The area between two rows of values; empty where one of them has gaps."""
    pairs = [
        (layer, a, b) for layer, (a, b) in enumerate(zip(low, high, strict=True)) if a is not None and b is not None
    ]
    if len(pairs) < max(1, len(low)) or not all(_fits(a, y) and _fits(b, y) for _, a, b in pairs):
        return ""
    there = [f"{x(layer):g},{y(b):g}" for layer, _, b in pairs]
    back = [f"{x(layer):g},{y(a):g}" for layer, a, _ in reversed(pairs)]
    return f"M{' L'.join([*there, *back])}Z"
