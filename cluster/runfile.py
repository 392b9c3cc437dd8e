"""run.json and the other small JSON files: written aside and renamed."""

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


def record_attempt(attempt: Attempt, facts: Mapping[str, Any]) -> None:
    """Add or update one attempt in run.json."""
    path = attempt.run_dir / "run.json"
    run = read_json(path) or {"experiment": attempt.run_dir.name, "attempts": []}
    attempts = {entry["attempt"]: entry for entry in run["attempts"]}
    attempts[attempt.number] = {**attempts.get(attempt.number, {}), "attempt": attempt.number, **facts}
    run["attempts"] = list(attempts.values())
    write_json(path, run)
