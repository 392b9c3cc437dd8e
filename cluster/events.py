"""`events.jsonl` of the run directory: what happened to the run, one JSON object a line, never rewritten."""

import json
import os
import time
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"
NOT_DELIVERED = "notice not delivered"
"""Of a webhook's notice: it may come after what the notice tells of."""
LAST_EVENT_BYTES = 4096


def record_event(run_dir: Path, event: str, **facts: Any) -> None:
    """Append one line. It goes out in one write, so lines of several processes do not mix.

    An event that cannot be written (a full disk) must not end the run that it tells of.
    """
    line = json.dumps({"time": time.time(), "event": event, **facts}) + "\n"
    try:
        file = os.open(run_dir / EVENTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        return
    try:
        os.write(file, line.encode())
    except OSError:
        pass
    finally:
        os.close(file)


def last_event(run_dir: Path) -> str | None:
    """What happened to the run last; None where nothing did, or the file's end cannot be read."""
    try:
        with (run_dir / EVENTS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LAST_EVENT_BYTES))
            for line in reversed(file.read().splitlines()):
                if (event := str(json.loads(line)["event"])) != NOT_DELIVERED:
                    return event
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
