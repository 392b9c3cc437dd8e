"""Watch over one mpirun: pass signals on, show rank 0's log, end what would not end by itself."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.logs import LogFollower
from cluster.machine import die_with_parent
from cluster.records import count_records
from cluster.rundir import Attempt

LOOK_EVERY = 0.1
"""Seconds between two looks at mpirun, the records and rank 0's log."""
GRACE_AFTER_FAILURE = 5.0
"""Seconds in which the other ranks may still write their tracebacks. MPICH leaves them running when one exits."""
GRACE_AFTER_COMPLETION = 10.0
"""Seconds that mpirun may take to return once all ranks ended well: Open MPI 5.0 sometimes never does (prrte 1839)."""
GRACE_TO_STOP = 10.0
"""Seconds from SIGTERM to SIGKILL for mpirun."""
GRACE_FOR_RECORDS = 5.0
"""Seconds in which a shared file system may still show records after mpirun has ended."""


@dataclass
class Noticed:
    """What happened so far: monotonic seconds, or None where it has not happened."""

    failed_at: float | None = None
    ended_well_at: float | None = None
    stop_at: float | None = None
    stopped_by: int | None = None

    def overdue(self, now: float) -> bool:
        """Whether mpirun should have ended by now: a rank failed, or all ended well, and it had its time."""
        failed = self.failed_at is not None and now - self.failed_at > GRACE_AFTER_FAILURE
        ended_well = self.ended_well_at is not None and now - self.ended_well_at > GRACE_AFTER_COMPLETION
        return failed or ended_well


@dataclass(frozen=True)
class MpirunEnd:
    """mpirun's exit status (negative: a signal), and the signal that stopped the launcher, if one did."""

    status: int
    stopped_by: int | None


def supervise(command: Sequence[str], environ: Mapping[str, str], world_size: int, attempt: Attempt) -> MpirunEnd:
    """Run mpirun to its end. Its own output goes to ``mpirun.log``, rank 0's to standard output."""
    with attempt.mpirun_log.open("wb") as log:
        mpirun = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509 (no other thread runs here)
        )
    noticed = Noticed()
    _pass_signals_on(mpirun, noticed)
    shown = LogFollower(attempt.log_of(0), sys.stdout.buffer)
    while mpirun.poll() is None:
        shown.copy_new()
        now = time.monotonic()
        counts = count_records(attempt.path)
        if counts["failed"] and noticed.failed_at is None:
            noticed.failed_at = now
        if counts["complete"] + counts["saved"] == world_size and noticed.ended_well_at is None:
            noticed.ended_well_at = now
        if noticed.stop_at is None and noticed.overdue(now):
            noticed.stop_at = now
            mpirun.terminate()
        elif noticed.stop_at is not None and now - noticed.stop_at > GRACE_TO_STOP:
            mpirun.kill()
        time.sleep(LOOK_EVERY)
    _wait_for_records(attempt, world_size)
    shown.copy_new()
    return MpirunEnd(mpirun.returncode, noticed.stopped_by)


def _pass_signals_on(mpirun: subprocess.Popen[bytes], noticed: Noticed) -> None:
    """USR1 and USR2 go to all ranks through mpirun; TERM and INT stop the attempt, the second time at once."""

    def forward(number: int, _frame: Any) -> None:
        mpirun.send_signal(number)

    def stop(number: int, _frame: Any) -> None:
        if noticed.stopped_by is None:
            noticed.stopped_by, noticed.stop_at = number, time.monotonic()
            mpirun.terminate()
        else:
            mpirun.kill()

    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _wait_for_records(attempt: Attempt, world_size: int) -> None:
    """Give a shared file system time to show the last records, unless they already tell the whole story."""
    deadline = time.monotonic() + GRACE_FOR_RECORDS
    while time.monotonic() < deadline:
        counts = count_records(attempt.path)
        if counts["failed"] or counts["complete"] + counts["saved"] == world_size or not counts["started"]:
            return
        time.sleep(LOOK_EVERY)
