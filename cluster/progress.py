"""How far a run is, by the ends of the files that its trainer leaves; other programs leave none of them.

Of metrics.jsonl only the end is read, however long the run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.run_file import read_json
from cluster.trainer import CONFIG_FILE, METRICS_FILE

TAIL_BYTES = 16_384
"""Some 40 rows."""
ROWS = 10
"""Of the last rows, over which speed is taken: one row may be of a slow step."""
LARGEST = 2**53
"""Of what is counted; a larger number in a file is none that anybody meant."""


class Progress(NamedTuple):
    """Steps made and to be made, losses in nats per token, tokens per second over all ranks, and seconds that the
    steps left would take at that speed. Whatever is not known is None."""

    step: int | None = None
    total: int | None = None
    loss: float | None = None
    held_out_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


def read_progress(run_dir: Path) -> Progress:
    """Of the run in this directory; never raises for what lies there."""
    try:
        settings = (read_json(run_dir / CONFIG_FILE) or {}).get("config", {})
    except (OSError, ValueError, AttributeError):
        settings = {}
    return progress(last_rows(run_dir / METRICS_FILE), settings if isinstance(settings, dict) else {})


def last_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows at the end of a metrics file."""
    try:
        with path.open("rb") as file:
            begin = max(0, file.seek(0, 2) - TAIL_BYTES)
            file.seek(begin)
            lines = file.read().split(b"\n")
    except OSError:
        return []
    return _whole_rows(lines[1 if begin else 0 :])


def all_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics file."""
    try:
        return _whole_rows(path.read_bytes().split(b"\n"))
    except OSError:
        return []


def _whole_rows(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """The rows of these lines but the last, which is empty or still being written."""
    rows = []
    for line in lines[:-1]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and _number(row["step"]) is not None:
            rows.append(row)
    return rows


def progress(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Progress:
    """From the last rows of metrics.jsonl and the trainer's options. What is no number is not known."""
    max_steps = _number(settings.get("max_steps"))
    total = int(max_steps) if max_steps else None
    steps = [row for row in rows if _number(row.get("loss")) is not None]
    if not steps:
        return Progress(max((row["step"] for row in rows), default=None), total)
    last = steps[-1]
    total = total or _by_epochs(last["step"], _number(last.get("epoch")), _number(settings.get("num_epochs")))
    seconds = _median(_numbers(steps[-ROWS:], "step_seconds"))
    return Progress(
        last["step"],
        total,
        last["loss"],
        next(reversed(_numbers(rows, "eval_loss")), None),
        _median(_numbers(steps[-ROWS:], "tokens_per_second")),
        None if total is None or seconds is None else max(0, total - last["step"]) * seconds,
    )


def _by_epochs(step: int, epoch: float | None, epochs: float | None) -> int | None:
    """All steps, by how many epochs the steps so far were. The last step of an epoch's rest is not made."""
    steps = _number(step / epoch * epochs + 1e-3) if epoch and epochs else None
    return None if steps is None else max(step, int(steps))


def _number(value: Any) -> float | None:
    """The value where it is a number to reckon with: not NaN, nor beyond all bounds."""
    return value if isinstance(value, int | float) and abs(value) < LARGEST else None


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [number for row in rows if (number := _number(row.get(name))) is not None]


def _median(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
