"""Word to the outside when a run starts, meets a fault, is queued again or ends: a JSON object by POST to a webhook.

The address and its token stand in a file that only its owner can read: never in a command line, log or environment.
What cannot be delivered stands in `events.jsonl`, and neither ends nor holds up the run.
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cluster.errors import RequestError
from cluster.events import NOT_DELIVERED, record_event
from cluster.sequel import END, REQUEUE
from cluster.terminal import say
from cluster.verdict import judged

START, FAULT = "start", "fault"
ANSWER_WITHIN = 10.0
"""Seconds that a webhook may take, and that the launcher waits for at its end."""


class Webhook(NamedTuple):
    """Where to, and the headers that go along, such as Authorization."""

    url: str
    headers: dict[str, str]


def read_webhook(path: str) -> Webhook:
    """From a file: an http(s) address in its first line, then headers as ``Name: value``.

    Raises `RequestError` where there is no such file, others than its owner can read it, or it says something else.
    """
    try:
        mode, text = os.stat(path).st_mode, Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--notify {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from error
    if mode & 0o077:
        raise RequestError(f"--notify {path}: others can read it, and the address in it is a secret: chmod 600 {path}")
    url, *more = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    pairs = [line.partition(":") for line in more]
    if not url.startswith(("https://", "http://")) or any(not (name and colon) for name, colon, _ in pairs):
        raise RequestError(
            f"--notify {path}: wanted an http(s) address in the first line, then headers, if any, as 'Name: value'"
        )
    return Webhook(url, {name.strip(): value.strip() for name, _, value in pairs})


def notice(event: str, run_dir: Path, attempt: int, summary: str, verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    """The payload. `text` alone says it all: Slack, Mattermost and Teams show that.

    Args:
        event: start, fault (another attempt follows here), requeue (Slurm queues the job again) or end.
        run_dir, attempt: the run's, which bears its experiment's name.
        summary: what was granted.
        verdict: of the attempt, unless it starts.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if verdict is None:
        words = f"attempt {attempt} starts on {summary}"
    else:
        then = {FAULT: "; launched again", REQUEUE: "; queued again", END: ""}[event]
        words = f"{judged(verdict)}{then}"
    return {
        "event": event,
        "time": time.time(),
        "text": f"{run_dir.name}{f' (job {job})' if job else ''}: {words}",
        "experiment": run_dir.name,
        "run_dir": str(run_dir),
        "job_id": job,
        "attempt": attempt,
        "verdict": dict(verdict) if verdict is not None else None,
    }


class Notices:
    """Delivers notices in the order in which they are told, beside the run; nothing where there is no webhook."""

    def __init__(self, webhook: Webhook | None) -> None:
        self._webhook = webhook
        self._last: threading.Thread | None = None

    def tell(self, payload: Mapping[str, Any]) -> None:
        if self._webhook is None:
            return
        self._last = threading.Thread(
            target=_deliver, args=(self._webhook, dict(payload), self._last), name="notice", daemon=True
        )
        self._last.start()

    def close(self) -> None:
        """Wait for what is on its way, but not long."""
        if self._last is not None:
            self._last.join(ANSWER_WITHIN)


def _deliver(webhook: Webhook, payload: Mapping[str, Any], before: threading.Thread | None) -> None:
    """One POST, after the one before it. Its address is a secret, which no word on a failure names."""
    import http.client
    import urllib.error
    import urllib.request

    if before is not None:
        before.join()
    headers = {"Content-Type": "application/json", "User-Agent": "slurm-mpi-train", **webhook.headers}
    request = urllib.request.Request(webhook.url, json.dumps(payload).encode(), headers)
    try:
        urllib.request.urlopen(request, timeout=ANSWER_WITHIN).close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        inner = getattr(error, "reason", None)  # of an URLError: what it stands for
        why = type(inner if isinstance(inner, OSError) else error).__name__
        if isinstance(error, urllib.error.HTTPError):
            why = f"HTTP {error.code}"
        record_event(Path(payload["run_dir"]), NOT_DELIVERED, of=payload["event"], why=why)
        if payload["event"] == START:  # the verdict stays the end of the log
            say([f"warning: the webhook of --notify did not take the notice that the run starts ({why})"])
