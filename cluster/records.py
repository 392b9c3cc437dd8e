"""What each rank leaves in the attempt's directory: one small file when it begins, one when it ends.

    ranks/rank-3.started.json
    ranks/rank-3.complete.json | rank-3.saved.json | rank-3.failed.json

The state is in the name, so that counting needs no file opened.
"""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import LauncherError
from cluster.runfile import read_json, write_json

STATES = ("started", "complete", "saved", "failed")

_RECORD = re.compile(rf"rank-\d+\.({'|'.join(STATES)})\.json")


def write_record(attempt_dir: Path, rank: int, state: str, facts: Mapping[str, Any]) -> None:
    """Leave a record; `time_ns` (nanoseconds since 1970) is now, unless the facts say otherwise."""
    write_json(attempt_dir / "ranks" / f"rank-{rank}.{state}.json", {"rank": rank, "time_ns": time.time_ns(), **facts})


def warning_file(attempt_dir: Path, number: int) -> Path:
    """What the launcher leaves beside the records when signal `number` is to reach every rank.

    mpirun passes signals on sooner, but not every one does: Open MPI 4.1.6 as Ubuntu 24.04 builds it drops them.
    """
    return attempt_dir / f"warning-{number}"


def count_records(attempt_dir: Path) -> dict[str, int]:
    """How many ranks have left a record of each state."""
    counts = dict.fromkeys(STATES, 0)
    for entry in _entries(attempt_dir):
        if match := _RECORD.fullmatch(entry.name):
            counts[match[1]] += 1
    return counts


def read_records(attempt_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """All records, by state."""
    records: dict[str, list[dict[str, Any]]] = {state: [] for state in STATES}
    for entry in _entries(attempt_dir):
        if match := _RECORD.fullmatch(entry.name):
            records[match[1]].append(read_json(Path(entry)))
    return records


def _entries(attempt_dir: Path) -> list["os.DirEntry[str]"]:
    try:
        return list(os.scandir(attempt_dir / "ranks"))
    except FileNotFoundError as error:
        raise LauncherError(f"{attempt_dir} has gone while its ranks ran: they were stopped") from error
