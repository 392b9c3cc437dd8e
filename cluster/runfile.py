"""run.json and the other small JSON files: written aside and renamed.

    {"experiment": "smoke_mpi", "excluded_hosts": ["n2"], "attempts": [
        {"attempt": 1, "started": 1790000000.0, "ended": …, "seconds": …, "job_id": "7", "restart_count": "0",
         "source": "slurm", "hosts": [["n1", 8, 8, 64], …],
         "verdict": {"kind", "status", "summary", "rank", "host", "gpu", "step", "detail", "next"},
         "steps": {"resumed": 0, "last": 17, "saved": 10},
         "accounting": {"queue": 2.1, "start": 4.0, …}}]}     seconds, see cluster.goodput

An attempt without `verdict` runs, or its launcher was killed.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.rundir import Attempt


def write_json(path: Path, data: Any) -> None:
    """Write aside and rename: a reader sees the old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(data, indent=1) + "\n")
    aside.rename(path)


def read_json(path: Path) -> Any:
    """Content of a JSON file, None where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def read_run(run_dir: Path) -> dict[str, Any]:
    """run.json, or that of a run without attempts."""
    run: dict[str, Any] = read_json(run_dir / "run.json") or {"experiment": run_dir.name, "attempts": []}
    run.setdefault("excluded_hosts", [])
    return run


def record_attempt(attempt: Attempt, facts: Mapping[str, Any]) -> None:
    """Add or update one attempt in run.json."""
    run = read_run(attempt.run_dir)
    attempts = {entry["attempt"]: entry for entry in run["attempts"]}
    attempts[attempt.number] = {**attempts.get(attempt.number, {}), "attempt": attempt.number, **facts}
    run["attempts"] = list(attempts.values())
    write_json(attempt.run_dir / "run.json", run)


def exclude_host(run_dir: Path, host: str) -> list[str]:
    """Add a host to those that no further attempt may use; all of them."""
    run = read_run(run_dir)
    excluded: list[str] = list(dict.fromkeys([*run["excluded_hosts"], host]))
    write_json(run_dir / "run.json", {**run, "excluded_hosts": excluded})
    return excluded
