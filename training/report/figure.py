"""One plot as a value: Vega-Lite's grammar (https://vega.github.io/vega-lite/docs/), and the same in words.

Here also is what all of them share: axes, legends, zoom, numbers as text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.report.thin import Point

VEGA_LITE = "6.1"
"""Version of the grammar. In 6.4 the tooltip of the nearest point does not know its text fields."""
STEP = "optimizer step (count)"
SIZE = {"width": "container", "height": 220}


@dataclass(frozen=True)
class Figure:
    """One plot."""

    key: str
    """Unique on a page; the name of its picture."""
    title: str
    spec: Mapping[str, Any]
    sentence: str
    """What it shows, for those who do not see it."""
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """A table of its numbers."""
    log: bool = False
    """It can have a logarithmic axis."""
    log_first: bool = False
    """It has one at first."""
    by_step: bool = False
    """Its x axis is the optimizer step."""
    notes: Sequence[str] = ()


def zoom() -> dict[str, Any]:
    """Ctrl and the wheel zoom, so that the wheel alone still scrolls the page; dragging moves."""
    select = {"type": "interval", "encodings": ["x"], "zoom": "wheel![event.ctrlKey || event.metaKey]"}
    return {"name": "zoom", "select": select, "bind": "scales"}


def step_axis() -> dict[str, Any]:
    """The x axis of what is drawn over the steps, field `x`."""
    return {
        "field": "x",
        "type": "quantitative",
        "title": STEP,
        "scale": {"zero": False, "nice": False},
        "axis": {"tickMinStep": 1, "format": "~s", "grid": False},
    }


def quantity(name: str, title: str, format: str = ",.6~g", **more: Any) -> dict[str, Any]:
    """An axis of numbers; `title` names the unit, `format` is d3's."""
    return {"field": name, "type": "quantitative", "title": title, "axis": {"format": format}} | more


def nominal(name: str, title: str | None, domain: Sequence[str], orient: str = "top") -> dict[str, Any]:
    """Colours or shapes of what has names, in the order of `domain`."""
    legend = {"orient": orient}
    return {"field": name, "type": "nominal", "title": title, "scale": {"domain": list(domain)}, "legend": legend}


def extremes(points: Sequence[Point]) -> list[str]:
    """First, last, lowest and highest value, each with its step."""
    lowest, highest = (choose(points, key=lambda point: point[1]) for choose in (min, max))
    return [_at(point) for point in (points[0], points[-1], lowest, highest)]


def _at(point: Point) -> str:
    return f"{text(point[1])} at step {text(point[0])}"


def in_words(title: str, row: Sequence[str]) -> str:
    """A sentence of a name and its `extremes`."""
    name, first, last, lowest, highest = row
    return f"{title} {name}: from {first} to {last}; lowest {lowest}, highest {highest}."


def text(value: float) -> str:
    """For people: whole numbers with commas, others with four digits."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10_000 else f"{value:.4g}"


def short(value: float) -> float:
    """Six digits are more than a plot shows, and half the bytes."""
    return float(f"{value:.6g}")
