"""Exit statuses, and the two errors that end a command with one of them.

A status says what to do next. They follow `sysexits.h` where it has a word for the case (64 usage, 70 internal,
75 temporary failure); a failing rank's own status passes through unchanged.
"""

COMPLETE = 0
"""Every planned rank proved that it completed."""
REQUEST = 64
"""The request is wrong: change it. Nothing was started."""
LAUNCHER = 70
"""The launcher or its environment is wrong: mend the site's or the job's set-up."""
NODE = 71
"""A node fell silent, or is not fit to run: leave that host out."""
HANG = 72
"""The ranks stopped making progress, and the watchdog ended them."""
NO_PROGRESS = 73
"""The same fault three times, and no step gained in between: another attempt would end the same way."""
REQUEUE = 75
"""Saved and stopped on request: queue the job again and it goes on."""


class ClusterError(Exception):
    """One or two lines for the user: what was given, what was wanted, what to do. Never a traceback."""

    status = LAUNCHER


class RequestError(ClusterError):
    """The user asked for something that cannot be (exit status 64)."""

    status = REQUEST


class LauncherError(ClusterError):
    """The place where we run cannot do it: no mpirun, inside an srun step, ... (exit status 70)."""
