"""Watch over one mpirun: pass signals on, show rank 0's log, end what would not end by itself."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.logs import LogFollower
from cluster.machine import die_with_parent
from cluster.records import count_records, read_records, warning_file
from cluster.rundir import Attempt
from cluster.verdict import is_victim

LOOK_EVERY = 0.1
"""Seconds between two looks at mpirun, the records and rank 0's log."""
GRACE_AFTER_FAILURE = 3.0
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
    warnings: list[int] = field(default_factory=list)
    """Signals for the ranks that wait until all ranks have begun."""

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
    try:
        _watch(mpirun, noticed, world_size, attempt, shown)
    finally:
        if mpirun.poll() is None:
            mpirun.terminate()
    _wait_for_records(attempt)
    shown.copy_new()
    return MpirunEnd(mpirun.returncode, noticed.stopped_by)


def _watch(
    mpirun: subprocess.Popen[bytes], noticed: Noticed, world_size: int, attempt: Attempt, shown: LogFollower
) -> None:
    while mpirun.poll() is None:
        shown.copy_new()
        now = time.monotonic()
        counts = count_records(attempt.path)
        if counts["failed"] and noticed.failed_at is None:
            noticed.failed_at = now
        if counts["complete"] + counts["saved"] == world_size and noticed.ended_well_at is None:
            noticed.ended_well_at = now
        if noticed.warnings and counts["started"] == world_size:
            number = noticed.warnings.pop()
            warning_file(attempt.path, number).touch()
            mpirun.send_signal(number)
        if noticed.stop_at is None and noticed.overdue(now):
            noticed.stop_at = now
            mpirun.terminate()
        elif noticed.stop_at is not None and now - noticed.stop_at > GRACE_TO_STOP:
            mpirun.kill()
        time.sleep(LOOK_EVERY)


def _pass_signals_on(mpirun: subprocess.Popen[bytes], noticed: Noticed) -> None:
    """USR1 and USR2 go to all ranks, through mpirun and as a file; TERM and INT stop the attempt (twice: at once).

    A warning waits until every rank has begun, because before that it would kill mpirun or its daemons.
    """

    def forward(number: int, _frame: Any) -> None:
        if number not in noticed.warnings:
            noticed.warnings.append(number)

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


def _wait_for_records(attempt: Attempt) -> None:
    """Give a shared file system time to show the last records, unless they already tell who began."""
    deadline = time.monotonic() + GRACE_FOR_RECORDS
    while time.monotonic() < deadline:
        counts = count_records(attempt.path)
        if counts["complete"] + counts["saved"] + counts["failed"] == counts["started"]:
            return
        if not all(is_victim(record) for record in read_records(attempt.path)["failed"]):
            return
        time.sleep(LOOK_EVERY)
