"""What is drawn over the optimizer steps: curves, phases, and the ranks as a heat map."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from training.metrics import RESUMED
from training.report.figure import SIZE, Figure, extremes, in_words, nominal, quantity, short, step_axis, text, zoom
from training.report.run import Run, Series
from training.report.thin import means, thin

POINTS = 1000
"""Of one figure, over all of its lines."""
FEW = 40
"""Up to so many points of a line are drawn as such."""
PHASE = "_seconds"
NO_PHASE = ("step_seconds", "checkpoint_seconds", "checkpoint_blocking_seconds")


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
        "perplexity",
        "Perplexity",
        "perplexity (e^loss, no unit)",
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
        "memory",
        "Memory of rank 0",
        "memory (GiB)",
        {"memory_allocated_bytes": "allocated", "memory_peak_bytes": "peak"},
        lambda size: size / 2**30,
    ),
)


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
        values += [{"x": step, "y": short(value), **shown} for step, value in points]
        rows.append([f"{name}, {label}" if several else label, *extremes(points)])
    resumed = sorted({step for run in runs.values() for step in _resumed(run)}) if not several else []
    kinds = list(dict.fromkeys(label for _, label, _ in found))
    colour = nominal("r", "run", list(runs)) if several else nominal("s", None, kinds)
    encoding: dict[str, Any] = {
        "x": step_axis(),
        "y": {
            **quantity("y", curve.axis, format=curve.format),
            "scale": {"type": "log"} if curve.log_first else {"zero": False},
        },
        "color": colour if several or len(kinds) > 1 else {**colour, "legend": None},
        "detail": [{"field": "r"}, {"field": "s"}],
    }
    if several and len(kinds) > 1:
        encoding["strokeDash"] = nominal("s", None, kinds)
    hover = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
    opacity = [{"param": "hover", "empty": False, "value": 1}, {"test": "datum.d", "value": 0.9}]
    tooltip = [
        {"field": "x", "title": "step", "format": ",d"},
        {"field": "y", "title": curve.axis, "format": ",.5~g"},
        *([{"field": "r", "title": "run"}] if several else []),
        {"field": "s", "type": "nominal", "title": "series"},
    ]
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "line", "clip": True, "strokeWidth": 1.5}, "encoding": encoding, "params": [zoom()]},
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
    sentence = " ".join(in_words(curve.title, row) for row in rows)
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
        notes=[f"Dashed: the run went on at step {', '.join(text(step) for step in resumed)}."] if resumed else [],
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
        values += [{"x": step, "y": short(1000 * value), "s": phase, "o": place} for step, value in points]
        rows.append([phase, *extremes([(step, 1000 * value) for step, value in points])])
    spec = {
        **SIZE,
        "data": {"values": values},
        # An area over one step has no width.
        "mark": {"type": "area" if len(values) > len(names) else "bar", "clip": True},
        "params": [zoom()],
        "encoding": {
            "x": step_axis(),
            "y": quantity("y", "time by phase (ms)", stack="zero"),
            "color": nominal("s", None, [row[0] for row in rows]),
            "order": {"field": "o", "type": "quantitative"},
            "tooltip": [
                {"field": "s", "title": "phase"},
                {"field": "x", "title": "step", "format": ",d"},
                {"field": "y", "title": "time (ms)", "format": ",.4~g"},
            ],
        },
    }
    return Figure(
        "phases",
        "Phases of a step on rank 0",
        spec,
        " ".join(in_words("Time in ms,", row) for row in rows),
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
        end = ends.get(cell.first_rank, min(cell.end_step, run.heat.last_step + 1))
        ends[cell.first_rank] = cell.first_step
        place = {"x": cell.first_step, "e": end, "a": cell.first_rank - 0.5}
        values.append(
            {**place, "b": cell.end_rank - 0.5, "y": short(1000 * cell.seconds), "k": cell.rank, "t": cell.step}
        )
    ranks = run.heat.last_rank + 1
    in_order = sorted(value["y"] for value in values)
    usual, most = in_order[len(in_order) // 2], in_order[min(len(in_order) - 1, len(in_order) * 98 // 100)]
    worst = sorted(values, key=lambda value: -value["y"])[:10]
    spec = {
        "width": "container",
        "height": max(80, min(400, 18 * len({cell.first_rank for cell in cells}))),
        "data": {"values": values},
        "mark": {"type": "rect", "clip": True},
        "params": [zoom()],
        "encoding": {
            "x": step_axis(),
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
    worst_words = f"{text(worst[0]['y'])} ms of rank {worst[0]['k']} at step {worst[0]['t']}"
    return Figure(
        "ranks",
        "Each rank's own time of a step",
        spec,
        f"Of {ranks} ranks: usually {text(usual)} ms of data and forward pass; the longest {worst_words}.",
        ["longest", "rank", "step"],
        [[f"{text(value['y'])} ms", str(value["k"]), text(value["t"])] for value in worst],
        by_step=True,
        notes=[
            "Data and forward pass, without waiting for other ranks.",
            "Each cell is the longest time of its ranks and steps; the colours end at the 98th percentile.",
        ],
    )


def _resumed(run: Run) -> list[float]:
    return [row["step"] for row in run.happened if row.get("event") == RESUMED]


def _rules(steps: Iterable[float]) -> dict[str, Any]:
    return {
        "data": {"values": [{"x": step} for step in steps]},
        "mark": {"type": "rule", "strokeDash": [4, 3], "opacity": 0.6, "clip": True},
        "encoding": {"x": step_axis()},
    }
