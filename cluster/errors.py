"""Exit statuses, and the two errors that end a command with one of them.

A status says what to do next. They follow `sysexits.h` where it has a word for the case (64 usage, 70 internal,
75 temporary failure); a failing rank's own status passes through unchanged.
"""

from collections.abc import Iterable

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


class MayBeQueued(LauncherError):
    """Slurm was asked for a job and gave no answer: it may have the job all the same (exit status 70)."""


def refused_by(status: int, words: str) -> ClusterError:
    """What another process said as it ended with that status: the request is wrong, or this place."""
    return RequestError(words) if status == REQUEST else LauncherError(words)


def did_you_mean(given: str, known: Iterable[str], otherwise: str) -> str:
    """The end of an error on a name that nobody knows: the nearest that there is, or what else to do."""
    import difflib

    near = difflib.get_close_matches(given, list(known), 1)
    return f"did you mean {near[0]}?" if near else otherwise
