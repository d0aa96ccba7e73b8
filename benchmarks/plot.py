"""A small line chart as SVG: logarithmic on both axes, readable on a light and a dark page."""

import math
from collections.abc import Iterator, Mapping
from html import escape

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 40, 44
_COLOURS = ("#3b7dd8", "#d9822b", "#2e9e6b", "#b04fb0", "#c0392b")
_GREY = "#888888"


class _Axis:
    """A logarithmic axis from pixel `begin` to `end`, with the powers of ten around `values`."""

    def __init__(self, values: list[float], begin: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)))
        high = math.ceil(math.log10(max(values)))
        self._high = max(high, self._low + 1)
        self._begin, self._end = begin, end

    def place(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return round(self._begin + share * (self._end - self._begin), 1)

    def ticks(self) -> Iterator[tuple[float, str]]:
        for power in range(self._low, self._high + 1):
            yield self.place(10**power), f"{10**power:,g}"


def chart(
    title: str, across: str, series: Mapping[str, Mapping[int, float]], unit: str = "ms"
) -> str:
    """Return an SVG chart with a line for each of `series`: values in `unit`, over those `across`.

    `across` is the label of the horizontal axis.
    """
    points = [point for line in series.values() for point in line.items()]
    x = _Axis([float(at) for at, _ in points], _LEFT, _WIDTH - _RIGHT)
    y = _Axis([value for _, value in points], _HEIGHT - _BOTTOM, _TOP)
    body = [
        _text(_LEFT, _TOP - 18, f"{title} ({unit})", weight="bold"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, across, anchor="middle"),
    ]
    for place, label in x.ticks():
        body.append(_line(place, _TOP, place, _HEIGHT - _BOTTOM))
        body.append(_text(place, _HEIGHT - _BOTTOM + 16, label, anchor="middle"))
    for place, label in y.ticks():
        body.append(_line(_LEFT, place, _WIDTH - _RIGHT, place))
        body.append(_text(_LEFT - 6, place + 4, label, anchor="end"))
    lowest = float(_TOP)
    for (name, line), colour in zip(
        sorted(series.items(), key=lambda item: -item[1][max(item[1])]), _COLOURS, strict=False
    ):
        places = [(x.place(at), y.place(value)) for at, value in sorted(line.items())]
        path = " ".join(f"{across_},{up}" for across_, up in places)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{at}" cy="{up}" r="3" fill="{colour}"/>' for at, up in places]
        lowest = max(places[-1][1] + 4, lowest + 14)  # keeps the names from overlapping
        body.append(_text(places[-1][0] + 8, lowest, name, colour=colour))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n' + "\n".join(body) + "\n</svg>\n"
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{_GREY}" stroke-opacity="0.35"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal",
    colour: str = _GREY,
) -> str:  # fmt: skip
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
