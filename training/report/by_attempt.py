"""What is drawn of the attempts: when they ran and how they ended, and where their time went."""

from datetime import UTC, datetime
from typing import Any

from training.report.figure import Figure, nominal, quantity, short, text, zoom
from training.report.run import Run

GOOD = ("complete", "saved for requeue")
CLOCK = {
    "milliseconds": "%H:%M:%S.%L",
    "seconds": "%H:%M:%S",
    "minutes": "%H:%M",
    "hours": "%H:%M",
    "day": "%b %d",
    "date": "%b %d",
    "week": "%b %d",
    "month": "%B",
}
"""How a tick of a time axis is written, by the coarsest unit that it begins; Vega's own clock has 12 hours."""


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
        "x": {
            "field": "x",
            "type": "temporal",
            "scale": {"type": "utc"},
            "title": "time (UTC)",
            "axis": {"format": CLOCK},
        },
        "y": {"field": "y", "type": "ordinal", "title": "attempt (number)", "axis": {"grid": False}},
    }
    tooltip = [
        {"field": "k", "title": "what"},
        {
            "field": "x",
            "type": "temporal",
            "title": "time (UTC)",
            "format": "%Y-%m-%d %H:%M:%S",
            "timeUnit": "utcyearmonthdatehoursminutesseconds",
        },
        {"field": "w", "title": "more"},
    ]
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": bars},
            "mark": {"type": "bar", "height": 16, "clip": True},
            "params": [zoom()],
            "encoding": {
                **shared,
                "x2": {"field": "e"},
                "color": nominal("k", "attempt", kinds),
                "tooltip": tooltip,
            },
        }
    ]
    if points:
        mark = {"type": "point", "filled": True, "size": 90, "stroke": "white", "strokeWidth": 1, "clip": True}
        shape = nominal("k", "event", shapes, "bottom")
        layers.append(
            {
                "data": {"values": points},
                "mark": mark | {"color": "#d92d20"},
                "encoding": {**shared, "shape": shape, "tooltip": tooltip},
            }
        )
    faults = [f"attempt {each.number}: {each.kind}" for each in run.attempts if each.kind and each.kind not in GOOD]
    spec = {"width": "container", "height": _height(len(bars)), "layer": layers}
    words = "1 attempt" if len(rows) == 1 else f"{len(rows)} attempts"
    return Figure(
        "attempts",
        "Attempts and faults",
        spec,
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
    unit, length = unit_of(max(sum(attempt.accounting.values()) for attempt in told))
    values = [
        {"y": attempt.number, "x": short(attempt.accounting[part] / length), "s": part, "o": parts.index(part)}
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
            "x": quantity("x", f"time ({unit})", stack="zero"),
            "y": {"field": "y", "type": "ordinal", "title": "attempt (number)"},
            "color": nominal("s", None, parts),
            "order": {"field": "o", "type": "quantitative"},
            "tooltip": [
                {"field": "y", "title": "attempt"},
                {"field": "s", "title": "part"},
                {"field": "x", "title": f"time ({unit})", "format": ",.4~g"},
            ],
        },
    }
    totals = {part: sum(attempt.accounting.get(part, 0.0) for attempt in told) for part in parts}
    whole = sum(totals.values()) or 1.0
    shares = [f"{part} {seconds / whole:.0%}" for part, seconds in totals.items() if seconds]
    return Figure(
        "spent",
        "Where the time went",
        spec,
        f"Of {text(whole / length)} {unit}: {', '.join(shares)}.",
        ["attempt", *(f"{part} (s)" for part in parts)],
        [[str(each.number), *(text(each.accounting.get(part, 0.0)) for part in parts)] for each in told],
    )


def unit_of(seconds: float) -> tuple[str, int]:
    """In which unit a length of time reads well, and its seconds."""
    return ("seconds", 1) if seconds < 180 else ("minutes", 60) if seconds < 3 * 3600 else ("hours", 3600)


def utc(seconds: float) -> str:
    """A moment as text; empty where no calendar has it."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return ""


def _height(attempts: int) -> int:
    """Of a figure with a bar for each attempt, in pixels."""
    return min(600, 28 * attempts)


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
