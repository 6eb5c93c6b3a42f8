"""Line and bar charts as SVG text; what is drawn comes from elsewhere, colours from the page.

A chart is as wide as a phone, so that its text keeps its size there; wider pages show several
beside each other. Series differ by dash and by the name at their end too, for those to whom
colours say nothing.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

_COLOURS = 6  # that the page has names for, .c0 to .c5
_WIDTH, _HEIGHT = 360, 210
_TOP, _BOTTOM = 26, 32  # around the plot; at its sides labels and names decide
_LINE = 12  # height of a line of text
_NAME = 18  # characters of a series' name
_DOTS = 40  # points up to which each is marked
_DASHES = ("none", "6 3", "2 2", "8 3 2 3", "12 3", "1 4")


class Series(NamedTuple):
    """A curve: its name, which may be empty, and its points by ascending x."""

    name: str
    points: list[tuple[float, float]]


class Band(NamedTuple):
    """A stretch of the x axis.

    Attributes:
        kind: the CSS class by which the page shades it.
        name: the text above it; may be empty.
    """

    start: float
    end: float
    kind: str
    name: str = ""


class Axis(NamedTuple):
    """The x axis: what it shows, its bands, and its ticks as place and text."""

    label: str
    bands: Sequence[Band]
    ticks: Sequence[tuple[float, str]]


class Bar(NamedTuple):
    """A bar: what is measured, its value, and half the width of its error line."""

    name: str
    value: float
    margin: float


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Choose about ``count`` round numbers within ``[low, high]``."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_labels(ticks: Sequence[float], shares: bool) -> list[str]:
    """Write evenly spaced numbers with as many digits as tell them apart, all of them alike.

    Args:
        shares: whether they are shown as percentages.
    """
    step = (ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0) * (100**shares)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:.{digits}{'%' if shares else 'f'}}" for tick in ticks]


def line_chart(title: str, series: Sequence[Series], axis: Axis, shares: bool = False) -> str:
    """Draw lines over shaded stages; returns nothing if no series has a finite value.

    Args:
        title: with the unit of y.
        shares: whether values of y are shares, shown as percentages.
    """
    series = [Series(name, [p for p in points if math.isfinite(p[1])]) for name, points in series]
    series = [one for one in series if one.points]
    if not series:
        return ""
    low, high = _range([y for one in series for _, y in one.points])
    if shares:
        high = min(high, 1.0)
    ticks = nice_ticks(low, high)
    labels = tick_labels(ticks, shares)
    left = max(44.0, 8 + 6.4 * max(len(label) for label in labels))
    bottom = max(_HEIGHT - _BOTTOM, _TOP + _LINE * len(series))
    start, end = axis.bands[0].start, axis.bands[-1].end
    right = _WIDTH - 14 - max(_width(_cut(one.name)) for one in series)

    def place(x: float, y: float) -> tuple[float, float]:
        down = (high - y) / (high - low) * (bottom - _TOP)
        return left + (x - start) / (end - start) * (right - left), _TOP + down

    parts = [*_bands(axis, bottom, lambda x: place(x, low)[0])]
    for tick, label in zip(ticks, labels, strict=True):
        y = place(start, tick)[1]
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts.append(_text(left - 4, y + 4, label, "end"))
    parts += _lines(series, place, right, bottom)
    return _figure(title, bottom + _BOTTOM, parts)


def bar_chart(title: str, groups: Sequence[tuple[str, Sequence[Bar]]], number: str = ".3f") -> str:
    """Draw horizontal bars, a group a row; `number` formats the values at their ends."""
    high = max((bar.value + bar.margin for _, bars in groups for bar in bars), default=0) or 1
    left, scale = 104, (_WIDTH - 104 - 108) / high
    parts, y = [], 4
    for row, (label, bars) in enumerate(groups):
        parts.append(_text(left - 6, y + 7 * len(bars) + 3, label, "end"))
        for place, bar in enumerate(bars):
            width, middle = scale * bar.value, y + 6
            low, top = (max(bar.value - bar.margin, 0), bar.value + bar.margin)
            parts.append(
                f'<rect class="c{place} bar" x="{left}" y="{y}" width="{width:.1f}" height="11"/>'
            )
            parts.append(
                f'<path class="margin" d="M{left + scale * low:.1f} {middle}'
                f'H{left + scale * top:.1f}"/>'
            )
            name = f"{bar.value:{number}} {bar.name if row == 0 else ''}"
            parts.append(_text(left + scale * top + 4, y + 10, name))
            y += 14
        y += 8
    parts.append(f'<path class="axis" d="M{left} 0V{y - 4}"/>')
    return _figure(title, y, parts)


def _range(values: list[float]) -> tuple[float, float]:
    """Choose the range of the y axis; it begins at 0 if that does not flatten the curves."""
    low, high = min(values), max(values)
    if 0 <= low < high / 2:
        low = 0.0
    pad = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if low == 0 and high else low - pad), high + pad


def _bands(axis: Axis, bottom: float, place: Callable[[float], float]) -> Iterable[str]:
    left, right = place(axis.bands[0].start), place(axis.bands[-1].end)
    for number, band in enumerate(axis.bands):
        x, width = place(band.start), place(band.end) - place(band.start)
        yield (
            f'<rect class="{escape(band.kind)}" x="{x:.1f}" y="{_TOP}" width="{width:.1f}" '
            f'height="{bottom - _TOP}"/>'
        )
        if band.name:  # two rows in turn: a short stage may be narrower than its name
            row = [one for one in axis.bands[:number] if one.name]
            yield _text(x, _TOP - 4 - _LINE * (len(row) % 2), band.name)
    yield f'<path class="axis" d="M{left:.1f} {bottom}H{right:.1f}"/>'
    for x, text in axis.ticks:
        yield _text(place(x), bottom + _LINE + 1, text, "middle")
    yield _text((left + right) / 2, bottom + 2 * _LINE + 3, axis.label, "middle")


def _lines(series: list[Series], place: Callable, right: float, bottom: float) -> Iterable[str]:
    """Draw the lines and, at their ends, their names, moved apart where they are close."""
    ends = []
    for number, (name, points) in enumerate(series):
        colour, turn = f"c{number % _COLOURS}", number // _COLOURS
        dash = _DASHES[(number + turn) % len(_DASHES)]
        places = [place(*point) for point in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield f'<path class="{colour} line" stroke-dasharray="{dash}" d="M{path}"/>'
        if len(points) <= _DOTS:
            for x, y in places:
                yield f'<circle class="{colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>'
        if name:
            ends.append((places[-1][1], places[-1][0], colour, name))
    heights: list[float] = []
    for y, *_ in sorted(ends):
        heights.append(max(y, heights[-1] + _LINE) if heights else y)
    beyond = max(heights[-1] - bottom, 0) if heights else 0
    for height, (y, x, colour, name) in zip(heights, sorted(ends), strict=True):
        height -= beyond
        yield f'<path class="{colour} leader" d="M{x:.1f} {y:.1f}L{right + 10:.1f} {height:.1f}"/>'
        yield _text(right + 12, height + 4, _cut(name), style=f"{colour} name")


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _width(name: str) -> float:
    """About how wide a bold name is; capitals are the widest."""
    return sum(9.4 if letter.isupper() or letter in "mw" else 7.6 for letter in name)


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> str:
    style = f' class="{style}"' if style else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, height: float, parts: Iterable[str]) -> str:
    title = escape(title)
    head = f'<svg role="img" aria-label="{title}" viewBox="0 0 {_WIDTH} {height:.0f}">'
    return f"<figure><figcaption>{title}</figcaption>{head}{''.join(parts)}</svg></figure>"
