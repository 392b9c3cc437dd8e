"""What is drawn: each figure in Vega-Lite's grammar (https://vega.github.io/vega-lite/docs/), with the same in words.

Pure: runs in, figures out. The page draws them in the reader's browser, `training.report.png` without one.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.report.run import NO_PHASE, PHASE, Run, Series
from training.report.thin import Point, means, thin

VEGA_LITE = "6.1"
"""Version of the grammar. In 6.4 the tooltip of the nearest point does not know its text fields."""
POINTS = 1000
"""Of one figure, over all of its lines."""
FEW = 40
"""Up to so many points of a line are drawn as such."""
STEP = "optimizer step (count)"
GOOD = ("complete", "saved for requeue")
SIZE = {"width": "container", "height": 220}


def theme(ink: str, paper: str, grid: str, lines: Sequence[str], heat: str) -> dict[str, Any]:
    """Vega's configuration for one background."""
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": grid, "domainColor": ink, "tickColor": ink}
    return {
        "background": paper,
        "font": "system-ui, sans-serif",
        "axis": {**axis, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
        "legend": {"labelColor": ink, "titleColor": ink, "labelLimit": 240, "labelFontSize": 12, "columns": 6},
        "title": {"color": ink, "anchor": "start"},
        "view": {"stroke": grid},
        "rule": {"color": ink},
        "range": {"category": list(lines), "heatmap": {"scheme": heat}},
    }


THEMES = {
    "light": theme(
        *("#1b1f24", "#ffffff", "#dfe3e8"),
        ["#0b5cad", "#b54708", "#067647", "#7a2fb0", "#a11043", "#0e7490", "#6b5900", "#475467"],
        "blues",
    ),
    "dark": theme(
        *("#e6e9ed", "#14181d", "#343b44"),
        ["#6cb6ff", "#f5a35c", "#5fd39a", "#c9a0f5", "#ff8fb0", "#67d5e6", "#e0cc5a", "#aeb7c2"],
        "viridis",
    ),
}


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
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Curve:
    """A line chart over the steps: which series of metrics.jsonl it shows, and how they are called."""

    key: str
    title: str
    axis: str
    names: Mapping[str, str]
    convert: Callable[[float], float] = float
    format: str = ",.6~g"
    log_first: bool = False


def as_perplexity(loss: float) -> float:
    """Of a loss in nats per token; a loss that has gone astray is cut off where no float can hold it."""
    return math.exp(min(loss, 700.0))


CURVES = (
    Curve("loss", "Loss", "loss (nats per token)", {"loss": "training", "eval_loss": "held out"}),
    Curve(
        *("perplexity", "Perplexity", "perplexity (e^loss, no unit)"),
        {"loss": "training", "eval_loss": "held out"},
        as_perplexity,
        log_first=True,
    ),
    Curve("lr", "Learning rate", "learning rate (no unit)", {"lr": "learning rate"}),
    Curve("grad_norm", "Gradient norm", "L2 norm before clipping (no unit)", {"grad_norm": "gradient norm"}),
    Curve("tokens", "Speed", "speed (tokens/s, all ranks)", {"tokens_per_second": "tokens/s"}, format="~s"),
    Curve("mfu", "Model FLOPs utilisation", "MFU (% of peak)", {"mfu": "MFU"}, lambda share: 100 * share),
    Curve("step_seconds", "Step time", "time of a step (s)", {"step_seconds": "rank 0"}),
    Curve(
        *("memory", "Memory of rank 0", "memory (GiB)"),
        {"memory_allocated_bytes": "allocated", "memory_peak_bytes": "peak"},
        lambda size: size / 2**30,
    ),
)


def labels(runs: Sequence[Run]) -> list[str]:
    """What the runs are called: by the experiment, by the directory where two share that name, else with a number."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, 1)]
    return names


def figures_together(runs: Sequence[Run]) -> list[Figure]:
    """Those in which several runs lie over one another."""
    names = labels(runs)
    figures = (curve_figure(curve, dict(zip(names, runs, strict=True))) for curve in CURVES)
    return [figure for figure in figures if figure is not None]


def figures_of(run: Run, now: float) -> list[Figure]:
    """Those of one run alone; `now` (seconds since 1970) ends what has no end yet."""
    figures = (phase_figure(run), heat_figure(run), time_line(run, now), spent_figure(run))
    return [figure for figure in figures if figure is not None]


def curve_figure(curve: Curve, runs: Mapping[str, Run]) -> Figure | None:
    """One line for each run and series; None where none has any value."""
    found: list[tuple[str, str, Series]] = [
        (name, label, run.series[kind])
        for name, run in runs.items()
        for kind, label in curve.names.items()
        if kind in run.series
    ]
    if not found:
        return None
    several = len(runs) > 1
    most = max(20, POINTS // len(found))
    values: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for name, label, series in found:
        points = [(step, curve.convert(value)) for step, value in thin(series.steps, series.values, most)]
        few = len(points) <= FEW
        shown = {"r": name, "s": label} | ({"d": 1} if few else {})
        values += [{"x": step, "y": _short(value), **shown} for step, value in points]
        rows.append([f"{name}, {label}" if several else label, *_extremes(points)])
    resumed = sorted({step for run in runs.values() for step in _resumed(run)}) if not several else []
    kinds = list(dict.fromkeys(label for _, label, _ in found))
    colour = {"field": "r", "title": "run"} if several else {"field": "s", "title": None}
    encoding: dict[str, Any] = {
        "x": _step_axis(),
        "y": {
            **_quantity("y", curve.axis, format=curve.format),
            "scale": {"type": "log"} if curve.log_first else {"zero": False},
        },
        "color": {
            **colour,
            "type": "nominal",
            "scale": {"domain": list(runs) if several else kinds},
            "legend": {"orient": "top"} if several or len(kinds) > 1 else None,
        },
        "detail": [{"field": "r"}, {"field": "s"}],
    }
    if several and len(kinds) > 1:
        dash = {"field": "s", "type": "nominal", "title": None, "scale": {"domain": kinds}}
        encoding["strokeDash"] = dash | {"legend": {"orient": "top"}}
    hover = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
    opacity = [{"param": "hover", "empty": False, "value": 1}, {"test": "datum.d", "value": 0.9}]
    tooltip = [
        {"field": "x", "title": "step", "format": ",d"},
        {"field": "y", "title": curve.axis, "format": ",.5~g"},
        *([{"field": "r", "title": "run"}] if several else []),
        {"field": "s", "type": "nominal", "title": "series"},
    ]
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "line", "clip": True, "strokeWidth": 1.5}, "encoding": encoding, "params": [_zoom()]},
        {
            "mark": {"type": "point", "filled": True, "size": 40, "clip": True},
            "params": [{"name": "hover", "select": hover}],
            "encoding": {
                **{name: encoding[name] for name in ("x", "y", "color")},
                "opacity": {"condition": opacity, "value": 0},
                "tooltip": tooltip,
            },
        },
    ]
    if resumed:
        layers.insert(0, _rules(resumed))
    sentence = " ".join(_in_words(curve.title, row) for row in rows)
    return Figure(
        curve.key,
        curve.title,
        {**SIZE, "data": {"values": values}, "layer": layers},
        sentence,
        ["series", "first", "last", "lowest", "highest"],
        rows,
        log=True,
        log_first=curve.log_first,
        by_step=True,
        notes=[f"Dashed: the run went on at step {', '.join(_text(step) for step in resumed)}."] if resumed else [],
    )


def phase_figure(run: Run) -> Figure | None:
    """Where the time of a step went on rank 0, as stacked areas."""
    names = [name for name in run.series if name.endswith(PHASE) and name not in NO_PHASE]
    if not names:
        return None
    values: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for place, name in enumerate(names):
        phase, series = name.removesuffix(PHASE), run.series[name]
        points = means(series.steps, series.values, POINTS // len(names))
        values += [{"x": step, "y": _short(1000 * value), "s": phase, "o": place} for step, value in points]
        rows.append([phase, *_extremes([(step, 1000 * value) for step, value in points])])
    spec = {
        **SIZE,
        "data": {"values": values},
        "mark": {"type": "area", "clip": True, "line": False},
        "params": [_zoom()],
        "encoding": {
            "x": _step_axis(),
            "y": _quantity("y", "time by phase (ms)", stack="zero"),
            "color": {
                "field": "s",
                "type": "nominal",
                "title": None,
                "legend": {"orient": "top"},
                "scale": {"domain": [row[0] for row in rows]},
            },
            "order": {"field": "o", "type": "quantitative"},
            "tooltip": [
                {"field": "s", "title": "phase"},
                {"field": "x", "title": "step", "format": ",d"},
                {"field": "y", "title": "time (ms)", "format": ",.4~g"},
            ],
        },
    }
    return Figure(
        *("phases", "Phases of a step on rank 0", spec),
        " ".join(_in_words("Time in ms,", row) for row in rows),
        ["phase", "first (ms)", "last (ms)", "lowest (ms)", "highest (ms)"],
        rows,
        by_step=True,
        notes=["Means over equal stretches of the run."],
    )


def heat_figure(run: Run) -> Figure | None:
    """Ranks by steps; the colour says how long a rank was busy itself."""
    cells = list(run.heat.cells())
    if not cells:
        return None
    ends: dict[int, int] = {}
    values: list[dict[str, Any]] = []
    # Not every step is logged, and many ranks take turns: a cell lasts until the next one of its ranks.
    for cell in reversed(cells):
        end = ends.get(cell.first_rank, min(cell.end_step, max(each.step for each in cells[-1:]) + 1))
        ends[cell.first_rank] = cell.first_step
        place = {"x": cell.first_step, "e": max(end, cell.first_step + 1), "a": cell.first_rank - 0.5}
        values.append(
            {**place, "b": cell.end_rank - 0.5, "y": _short(1000 * cell.seconds), "k": cell.rank, "t": cell.step}
        )
    ranks = 1 + max(cell.rank for cell in cells)
    in_order = sorted(value["y"] for value in values)
    usual, most = in_order[len(in_order) // 2], in_order[min(len(in_order) - 1, len(in_order) * 98 // 100)]
    worst = sorted(values, key=lambda value: -value["y"])[:10]
    spec = {
        "width": "container",
        "height": max(80, min(400, 18 * len({cell.first_rank for cell in cells}))),
        "data": {"values": values},
        "mark": {"type": "rect", "clip": True, "stroke": None},
        "params": [_zoom()],
        "encoding": {
            "x": _step_axis(),
            "x2": {"field": "e"},
            "y": {
                "field": "a",
                "type": "quantitative",
                "title": "rank (number)",
                "scale": {"domain": [-0.5, ranks - 0.5], "reverse": True, "nice": False},
                "axis": {"grid": False, "tickMinStep": 1, "format": "d"},
            },
            "y2": {"field": "b"},
            "color": {
                "field": "y",
                "type": "quantitative",
                "title": "busy (ms)",
                # One long first step would leave all others the same colour.
                "scale": {"domain": [in_order[0], max(most, in_order[0] + 1e-6)], "clamp": True, "zero": False},
            },
            "tooltip": [
                {"field": "k", "title": "rank"},
                {"field": "t", "title": "step", "format": ",d"},
                {"field": "y", "title": "busy (ms)", "format": ",.4~g"},
            ],
        },
    }
    worst_words = f"{_text(worst[0]['y'])} ms of rank {worst[0]['k']} at step {worst[0]['t']}"
    return Figure(
        *("ranks", "Each rank's own time of a step", spec),
        f"Of {ranks} ranks: usually {_text(usual)} ms of data and forward pass; the longest {worst_words}.",
        ["longest", "rank", "step"],
        [[f"{_text(value['y'])} ms", str(value["k"]), _text(value["t"])] for value in worst],
        by_step=True,
        notes=[
            "Data and forward pass, without waiting for other ranks.",
            "Each cell is the longest time of its ranks and steps; the colours end at the 98th percentile.",
        ],
    )


def time_line(run: Run, now: float) -> Figure | None:
    """Attempts as bars by time, faults and other events as points on them."""
    if not run.attempts:
        return None
    bars: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for attempt in run.attempts:
        end = attempt.ended if attempt.ended is not None else max(now, attempt.started)
        outcome = attempt.kind or "no verdict"
        place = {"y": attempt.number, "k": outcome}
        summary = str(attempt.verdict.get("summary") or "")[:200]
        bars.append({**place, "x": _milliseconds(attempt.started), "e": _milliseconds(end), "w": summary})
        if attempt.kind and attempt.kind not in GOOD:
            points.append({"y": attempt.number, "x": _milliseconds(end), "k": f"fault: {outcome}", "w": summary})
    last = run.attempts[-1].number
    for event in run.events[-200:]:
        kind = str(event.get("event"))
        if kind != "verdict":
            where = event.get("attempt") if isinstance(event.get("attempt"), int) else last
            said = ", ".join(f"{name} {event[name]}" for name in event if name not in ("time", "event", "attempt"))
            points.append({"y": where, "x": _milliseconds(event["time"]), "k": kind, "w": said[:200]})
    kinds, shapes = (list(dict.fromkeys(each["k"] for each in those)) for those in (bars, points))
    rows = [
        [
            str(attempt.number),
            utc(attempt.started),
            "" if attempt.ended is None else utc(attempt.ended),
            attempt.kind or "no verdict",
        ]
        for attempt in run.attempts
    ]
    shared = {
        "x": {"field": "x", "type": "temporal", "scale": {"type": "utc"}, "title": "time (UTC)"},
        "y": {"field": "y", "type": "ordinal", "title": "attempt (number)", "axis": {"grid": False}},
    }
    tooltip = [
        {"field": "k", "title": "what"},
        {"field": "x", "type": "temporal", "title": "time (UTC)", "format": "%Y-%m-%d %H:%M:%S", "timeUnit": UTC},
        {"field": "w", "title": "more"},
    ]
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": bars},
            "mark": {"type": "bar", "height": 16, "clip": True},
            "params": [_zoom()],
            "encoding": {
                **shared,
                "x2": {"field": "e"},
                "color": _nominal("k", "attempt", kinds),
                "tooltip": tooltip,
            },
        }
    ]
    if points:
        mark = {"type": "point", "filled": True, "size": 90, "stroke": "white", "strokeWidth": 1, "clip": True}
        shape = _nominal("k", "event", shapes, "bottom")
        layers.append(
            {
                "data": {"values": points},
                "mark": mark | {"color": "#d92d20"},
                "encoding": {**shared, "shape": shape, "tooltip": tooltip},
            }
        )
    faults = [f"attempt {attempt.number}: {attempt.kind}" for attempt in run.attempts if attempt.kind not in GOOD]
    spec = {"width": "container", "height": _height(len(bars)), "layer": layers}
    words = "1 attempt" if len(rows) == 1 else f"{len(rows)} attempts"
    return Figure(
        *("attempts", "Attempts and faults", spec),
        f"{words} from {rows[0][1]} to {rows[-1][2] or 'now'}; {'; '.join(faults) or 'no fault'}.",
        ["attempt", "started (UTC)", "ended (UTC)", "verdict"],
        rows,
    )


def spent_figure(run: Run) -> Figure | None:
    """Where the time of each attempt went, queue and lost time included."""
    told = [attempt for attempt in run.attempts if attempt.accounting]
    if not told:
        return None
    parts = list(dict.fromkeys(part for attempt in told for part in attempt.accounting))
    values = [
        {"y": attempt.number, "x": _short(attempt.accounting[part] / 60), "s": part, "o": parts.index(part)}
        for attempt in told
        for part in parts
        if attempt.accounting.get(part)
    ]
    spec = {
        "width": "container",
        "height": _height(len(told)),
        "data": {"values": values},
        "mark": {"type": "bar", "height": 16},
        "encoding": {
            "x": _quantity("x", "time (minutes)", stack="zero"),
            "y": {"field": "y", "type": "ordinal", "title": "attempt (number)"},
            "color": _nominal("s", None, parts),
            "order": {"field": "o", "type": "quantitative"},
            "tooltip": [
                {"field": "y", "title": "attempt"},
                {"field": "s", "title": "part"},
                {"field": "x", "title": "time (minutes)", "format": ",.4~g"},
            ],
        },
    }
    totals = {part: sum(attempt.accounting.get(part, 0.0) for attempt in told) for part in parts}
    whole = sum(totals.values()) or 1.0
    shares = [f"{part} {seconds / whole:.0%}" for part, seconds in totals.items() if seconds]
    return Figure(
        *("spent", "Where the time went", spec),
        f"Of {_text(whole / 60)} minutes: {', '.join(shares)}.",
        ["attempt", *(f"{part} (s)" for part in parts)],
        [[str(each.number), *(_text(each.accounting.get(part, 0.0)) for part in parts)] for each in told],
    )


UTC = "utcyearmonthdatehoursminutesseconds"


def utc(seconds: float) -> str:
    """A moment as text; empty where no calendar has it."""
    from datetime import UTC as zone
    from datetime import datetime

    try:
        return datetime.fromtimestamp(seconds, zone).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return ""


def _resumed(run: Run) -> list[float]:
    return [row["step"] for row in run.happened if row.get("event") == "resumed"]


def _rules(steps: Iterable[float]) -> dict[str, Any]:
    return {
        "data": {"values": [{"x": step} for step in steps]},
        "mark": {"type": "rule", "strokeDash": [4, 3], "opacity": 0.6, "clip": True},
        "encoding": {"x": _step_axis()},
    }


def _zoom() -> dict[str, Any]:
    """Ctrl and the wheel zoom, so that the wheel alone still scrolls the page; dragging moves."""
    select = {"type": "interval", "encodings": ["x"], "zoom": "wheel![event.ctrlKey || event.metaKey]"}
    return {"name": "zoom", "select": select, "bind": "scales"}


def _step_axis() -> dict[str, Any]:
    return {
        "field": "x",
        "type": "quantitative",
        "title": STEP,
        "scale": {"zero": False, "nice": False},
        "axis": {"tickMinStep": 1, "format": "~s", "grid": False},
    }


def _quantity(name: str, title: str, format: str = ",.6~g", **more: Any) -> dict[str, Any]:
    return {"field": name, "type": "quantitative", "title": title, "axis": {"format": format}} | more


def _nominal(name: str, title: str | None, domain: Sequence[str], orient: str = "top") -> dict[str, Any]:
    legend = {"orient": orient}
    return {"field": name, "type": "nominal", "title": title, "scale": {"domain": list(domain)}, "legend": legend}


def _height(attempts: int) -> int:
    """Of a figure with a bar for each attempt, in pixels."""
    return min(600, 28 * attempts)


def _extremes(points: Sequence[Point]) -> list[str]:
    lowest, highest = (choose(points, key=lambda point: point[1]) for choose in (min, max))
    return [_at(point) for point in (points[0], points[-1], lowest, highest)]


def _at(point: Point) -> str:
    return f"{_text(point[1])} at step {_text(point[0])}"


def _in_words(title: str, row: Sequence[str]) -> str:
    name, first, last, lowest, highest = row
    return f"{title} {name}: from {first} to {last}; lowest {lowest}, highest {highest}."


def _text(value: float) -> str:
    """For people: whole numbers with commas, others with four digits."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10_000 else f"{value:.4g}"


def _short(value: float) -> float:
    """Six digits are more than a plot shows, and half the bytes."""
    return float(f"{value:.6g}")


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
