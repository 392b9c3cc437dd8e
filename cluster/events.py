"""`events.jsonl` of the run directory: what happened to the run, one JSON object a line, never rewritten."""

import json
import os
import time
from pathlib import Path
from typing import Any


def record_event(run_dir: Path, event: str, **facts: Any) -> None:
    """Append one line. It goes out in one write, so lines of several processes do not mix.

    An event that cannot be written (a full disk) must not end the run that it tells of.
    """
    line = json.dumps({"time": time.time(), "event": event, **facts}) + "\n"
    try:
        file = os.open(run_dir / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        return
    try:
        os.write(file, line.encode())
    except OSError:
        pass
    finally:
        os.close(file)
