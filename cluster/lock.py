"""The lock on a run directory: one launcher at a time, and which one that is, by its own words in the file.

process 4711 on n1, job 12, start 0
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from cluster.errors import LauncherError, RequestError
from cluster.own_job import restart_count
from cluster.private import make_private_directory, private
from cluster.rundir import unwritable

LOCK_FILE = "launcher.lock"
LEASE = 120.0
"""Seconds after which a file server gives up the locks of a host that it no longer hears (NFSv4's lease is 90)."""

_HOLDER = re.compile(r"process (\d+) on ([^,\s]+)(?:, job ([^,\s]+)(?:, start (\d+))?)?")


class Holder(NamedTuple):
    """The launcher that holds a run directory. Away from Slurm it has no job, and no start of one."""

    pid: int
    host: str
    job_id: str | None = None
    start: int | None = None

    def __str__(self) -> str:
        job = f", job {self.job_id}, start {self.start}" if self.job_id else ""
        return f"process {self.pid} on {self.host}{job}"


@contextmanager
def only_launcher_of(run_dir: Path) -> Iterator[None]:
    """Hold the run directory while an attempt runs: two at once would overwrite each other's checkpoints.

    Raises `RequestError` where another launcher holds it, or where the directory cannot be written.
    """
    try:
        make_private_directory(run_dir)
        lock = open(run_dir / LOCK_FILE, "a+", opener=private)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise unwritable(run_dir, error) from error
    job_id = os.environ.get("SLURM_JOB_ID")
    own = Holder(os.getpid(), os.uname().nodename, job_id, restart_count(os.environ) if job_id else None)
    with lock:
        try:
            _lock(lock, own)
        except BlockingIOError:
            lock.seek(0)
            raise RequestError(
                f"{run_dir} is in use by {lock.read().strip() or 'another launcher'}: "
                "wait for its end, or choose another --experiment-name"
            ) from None
        except OSError:
            pass  # a file system without locks
        lock.truncate(0)
        lock.write(f"{own}\n")
        lock.flush()
        yield


def _lock(lock: IO[str], own: Holder) -> None:
    """Lock it, at the second try where somebody just looks whether it is held. Raises `BlockingIOError`.

    Held by an earlier start of this very job, it is a file server that still counts on a host that was lost: that is
    waited for, and then ignored, because Slurm has given the host up.
    """
    lock.seek(0)
    held = parse_holder(lock.read())
    earlier = held is not None and own.job_id is not None and held.job_id == own.job_id and held.start != own.start
    deadline = time.monotonic() + (LEASE if earlier else 0.1)
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                if earlier:
                    return None
                raise
            time.sleep(0.1)


def launcher_holds(run_dir: Path) -> bool:
    """Whether a launcher holds the run directory now. Reads only: holds the lock itself but for a blink."""
    try:
        with (run_dir / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no lock yet, or a file system without locks
    return False


def read_holder(run_dir: Path) -> Holder | None:
    """The launcher that took the lock last; None where the lock says nothing (yet)."""
    try:
        return parse_holder((run_dir / LOCK_FILE).read_text())
    except OSError:
        return None


def check_is_here(holder: Holder, run_dir: Path, command: str) -> None:
    """Raise `LauncherError` where the launcher is on another machine, on which the command does what was asked."""
    here = os.uname().nodename
    if holder.host != here:
        raise LauncherError(
            f"the launcher of {run_dir.name} runs on {holder.host}, this is {here}: ssh {holder.host} {command}"
        )


def parse_holder(text: str) -> Holder | None:
    found = _HOLDER.match(text)
    return Holder(int(found[1]), found[2], found[3], None if found[4] is None else int(found[4])) if found else None


def has_lock_open(pid: int, run_dir: Path) -> bool:
    """Whether the process has the lock open: in a container its number may mean another process. Raises OSError."""
    wanted = (run_dir / LOCK_FILE).stat()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.path.samestat(descriptor.stat(), wanted):
                return True
        except OSError:
            pass  # closed meanwhile
    return False
