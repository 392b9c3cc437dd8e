"""What was measured, as a table and as JSON."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from training.bench.options import OURS
from training.bench.rounds import Turns
from training.terminal import columns

FORMAT = 1
NONE = "–"


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Median, smallest and largest of the rounds, and all of them; None where there were none."""
    if not values:
        return None
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": list(values),
    }


def median(values: Sequence[float]) -> float | None:
    """None where there are none."""
    return statistics.median(values) if values else None


def limit_row(name: str, what: str, unit: str, batch_size: int, values: Sequence[float]) -> dict[str, Any]:
    """A limit; `unit` is that of the values."""
    return {"limit": name, "what": what, "unit": unit, "batch_size": batch_size, "measured": spread(values)}


def subject_row(
    turns: Turns, ours: Turns | None, flops_per_token: float, peak: float | None, matrix: float | None
) -> dict[str, Any]:
    """A subject's figures.

    Args:
        turns: the subject.
        ours: ours at the same batch size, in the same rounds; None where it was not measured.
        flops_per_token: of the model, without what a subject adds by filling up its vocabulary.
        peak: the device's, in FLOP/s, where known.
        matrix: measured rate of a large matrix product, in FLOP/s.
    """
    speeds = turns.tokens_per_second
    speed = median(speeds)
    ratios = []
    if ours is not None:
        ratios = [own / other for own, other in zip(ours.tokens_per_second, speeds, strict=False)]

    def share(of: float | None) -> float | None:
        return None if of is None or speed is None else speed * flops_per_token / of

    return {
        "subject": turns.name,
        "batch_size": turns.batch_size,
        "tokens_per_second": spread(speeds),
        "ours_over_this": spread(ratios),
        "mfu": share(peak),
        "matrix_share": share(matrix),
        "peak_memory_bytes": turns.peak_memory_bytes,
        "graphs": turns.graphs,
        "graph_breaks": turns.graph_breaks,
        "build_seconds": turns.build_seconds,
        "first_step_seconds": turns.first_step_seconds,
        "first_loss": _finite(turns.first_loss),
        "last_loss": _finite(turns.last_loss),
        "failed": turns.failed,
    }


def best_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every subject at the batch size where its median is highest, and ours at its own best beside it."""
    measured = [row for row in rows if row["tokens_per_second"]]
    best: dict[str, Mapping[str, Any]] = {}
    for row in measured:
        name = row["subject"]
        if name not in best or _median(row) > _median(best[name]):
            best[name] = row
    return [
        {
            "subject": name,
            "batch_size": row["batch_size"],
            "tokens_per_second": _median(row),
            "ours_over_this": _median(best[OURS]) / _median(row) if OURS in best else None,
        }
        for name, row in best.items()
    ]


def _median(row: Mapping[str, Any]) -> float:
    return row["tokens_per_second"]["median"]


def tables(result: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """The result as tables, each a head and rows of text."""
    found = []
    if result["limits"]:
        head = ["limit", "", "batch", "median", "min–max"]
        found.append((head, [_limit_cells(row) for row in result["limits"]]))
    head = ["subject", "batch", "tokens/s a rank", "min–max", "ours/this", "min–max", "MFU", "of matrix", "memory"]
    head += ["graph breaks", "first step", "loss"]
    found.append((head, [_subject_cells(row) for row in result["rows"]]))
    if len({row["batch_size"] for row in result["rows"]}) > 1:
        head = ["best of its batch sizes", "batch", "tokens/s a rank", "ours/this"]
        cells = [
            [row["subject"], str(row["batch_size"]), f"{row['tokens_per_second']:,.0f}", _ratio(row["ours_over_this"])]
            for row in result["best"]
        ]
        found.append((head, cells))
    if result["starts"]:
        head = ["first step of a new process", "no caches", "min–max", "with caches", "min–max"]
        found.append((head, [_start_cells(row) for row in result["starts"]]))
    return found


def _limit_cells(row: Mapping[str, Any]) -> list[str]:
    scale, unit = (1e12, "TFLOP/s") if row["unit"] == "FLOP/s" else (1e9, "GB/s")
    measured = row["measured"]
    if measured is None:
        return [row["limit"], row["what"], str(row["batch_size"]), NONE, NONE]
    low, high = measured["min"] / scale, measured["max"] / scale
    middle = f"{measured['median'] / scale:.4g} {unit}"
    return [row["limit"], row["what"], str(row["batch_size"]), middle, f"{low:.4g}–{high:.4g}"]


def _subject_cells(row: Mapping[str, Any]) -> list[str]:
    start = [row["subject"], str(row["batch_size"])]
    speed, ratio = row["tokens_per_second"], row["ours_over_this"]
    if speed is None:
        return [*start, row["failed"] or "no round"]
    return [
        *start,
        f"{speed['median']:,.0f}",
        f"{speed['min']:,.0f}–{speed['max']:,.0f}",
        _ratio(ratio and ratio["median"]),
        NONE if ratio is None else f"{ratio['min']:.3f}–{ratio['max']:.3f}",
        _percent(row["mfu"]),
        _percent(row["matrix_share"]),
        NONE if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**30:.1f} GiB",
        NONE if row["graph_breaks"] is None else str(row["graph_breaks"]),
        _seconds(row["first_step_seconds"]),
        " → ".join("not finite" if loss is None else f"{loss:.3f}" for loss in (row["first_loss"], row["last_loss"])),
    ]


def _start_cells(row: Mapping[str, Any]) -> list[str]:
    if row["failed"] is not None:
        return [row["subject"], row["failed"]]
    cells = [row["subject"]]
    for kind in ("cold_seconds", "warm_seconds"):
        cells += [_seconds(row[kind]["median"]), f"{row[kind]['min']:.1f}–{row[kind]['max']:.1f}"]
    return cells


def _finite(value: float | None) -> float | None:
    """JSON has no word for what is not."""
    return value if value is not None and math.isfinite(value) else None


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def heading(result: Mapping[str, Any]) -> str:
    """What was measured on what, in a line."""
    options, ranks = result["options"], result["ranks"]
    return (
        f"{options['model']} ({result['parameters'] / 1e6:.1f}M parameters), {options['seq_length']} tokens, "
        f"dropout {options['dropout']:g}, {result['precision']}{', compiled' if options['compile'] else ''} · "
        f"{ranks} {'rank' if ranks == 1 else 'ranks'} on {result['device']} · torch {result['versions']['torch']}, "
        f"transformers {result['versions']['transformers']}"
    )


def show(result: Mapping[str, Any], terminal: bool) -> None:
    """Print the tables: by rich on a terminal, in plain columns elsewhere."""
    print(f"\n{heading(result)}", flush=True)
    for head, rows in tables(result):
        if not terminal:
            print("", *columns(head, rows), sep="\n", flush=True)
            continue
        from rich.console import Console
        from rich.table import Table

        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
