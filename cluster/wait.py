"""Wait for a Slurm job to its very end, through requeues, and show its log meanwhile."""

import sys
import time
from pathlib import Path

from cluster.errors import LauncherError
from cluster.growing_logs import LogFollower
from cluster.jobs import Job, job_now

LOOK_EVERY = 1.0
"""Seconds between two looks at the log; the controller is asked more and more seldom, up to `ASK_AT_MOST`."""
ASK_AT_LEAST, ASK_AT_MOST = 1.0, 15.0
UNKNOWN_FOR = 120.0
"""Seconds after which a job that neither controller nor accounting knows is given up."""


def wait_for_job(job_id: str, log: Path, follow: bool, timeout: float | None = None) -> int:
    """The job's exit status once it has ended for good. With `follow`, its log and why it is pending are shown.

    Raises:
        LauncherError: Slurm stopped knowing the job before it said how it ended.
        TimeoutError: it has not ended after that many seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    shown = LogFollower(log, sys.stdout.buffer)
    pause, ask_at, known_at, last = ASK_AT_LEAST, 0.0, time.monotonic(), ""
    while True:
        now = time.monotonic()
        if now >= ask_at:
            state = job_now(job_id)
            if state is not None:
                known_at = now
                if follow and (line := f"job {job_id}: {state.state.lower()}{_reason(state)}") != last:
                    print(line, flush=True)
                    pause, last = ASK_AT_LEAST, line
                if state.ended:
                    if follow:
                        shown.copy_new()
                    return state.exit_status
            elif now - known_at > UNKNOWN_FOR:
                raise LauncherError(f"Slurm no longer knows job {job_id}: its verdict is in run.json beside {log}")
            ask_at, pause = now + pause, min(pause * 1.5, ASK_AT_MOST)
        if deadline is not None and now >= deadline:
            raise TimeoutError(f"job {job_id} has not ended after {timeout:g} s")
        if follow:
            shown.copy_new()
        time.sleep(LOOK_EVERY)


def _reason(state: Job) -> str:
    return f" ({state.reason})" if state.state == "PENDING" and state.reason not in ("", "None") else ""
