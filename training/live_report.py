"""`--report-interval`: RUN/report.html rewritten while the run trains, by a process beside it that gives way to
everybody else.

The training only looks at a clock. A report that fails is told once, and nothing waits for one before the end.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from training.errors import InputError

NEEDS = ("vl_convert", "jinja2")
DEFAULT_MINUTES = 5.0
LONGEST_SECONDS = 60.0
"""How long the end of the training waits for the last report."""
LEAST_URGENT = 19


def interval_seconds(minutes: float | None) -> float | None:
    """Seconds between two reports; None where there are to be none.

    Raises:
        InputError: reports are asked for, and what draws them is not installed.
    """
    if minutes == 0:
        return None
    if any(importlib.util.find_spec(name) is None for name in NEEDS):
        if minutes is None:
            return None
        raise InputError(
            f"--report-interval {minutes:g}: the report needs pip install 'slurm-mpi-train[report]'; or give 0 for none"
        )
    return 60 * (DEFAULT_MINUTES if minutes is None else minutes)


class LiveReport:
    """The report of a run that trains; rank 0 has one."""

    def __init__(
        self,
        folder: Path,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        command: Sequence[str] = (sys.executable, "-m", "training.report"),
    ) -> None:
        """Begin to count.

        Args:
            folder: the run directory.
            seconds: from one report to the next.
            clock: seconds.
            command: what writes it, given the run directory.
        """
        self._seconds, self._clock = seconds, clock
        self._command = [*command, str(folder.absolute())]
        self._begun = self._last = clock()
        self._process: subprocess.Popen[bytes] | None = None
        self._told = False

    def rewrite(self) -> list[str]:
        """Begin a new report where it is time and the one before is done; a warning, once, where that failed."""
        lines = self._look()
        if self._process is None and self._clock() - self._last >= self._seconds:
            self._last = self._clock()
            lines += self._start()
        return lines

    def stop(self) -> None:
        """End a report that is being written; the one before it stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def finish(self) -> list[str]:
        """Write the last report and wait for it, where the training took long enough for one."""
        self.stop()
        if self._clock() - self._begun < self._seconds:
            return []
        lines = self._start()
        if self._process is not None:
            try:
                self._process.wait(LONGEST_SECONDS)
            except subprocess.TimeoutExpired:
                self.stop()
                return [*lines, *self._warning(f"not done after {LONGEST_SECONDS:g} s")]
        return lines + self._look()

    def _start(self) -> list[str]:
        try:
            # Nothing of ours stays open in it, so that an mpirun that waits for its ranks' output does not wait for it.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            os.setpriority(os.PRIO_PROCESS, self._process.pid, LEAST_URGENT)
        except OSError as error:
            return self._warning(str(error)) if self._process is None else []
        return []

    def _look(self) -> list[str]:
        status = self._process.poll() if self._process is not None else None
        if status is None:
            return []
        self._process = None
        return self._warning(f"exit status {status}") if status else []

    def _warning(self, why: str) -> list[str]:
        told, self._told = self._told, True
        how = f"`python -m training.report {self._command[-1]}` says more; the training goes on"
        return [] if told else [f"warning: the report was not written ({why}): {how}"]
