"""A folder on this node's own disk that nobody but this user can read or write.

Its name can be guessed, so somebody else may have made it first: it counts only where it is a real folder, this
user's own, closed to all others, below a parent in which nobody else can put another in its place.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

NAME = "slurm-mpi-train"


def node_local_folder(environ: Mapping[str, str]) -> Path | None:
    """``$TMPDIR/slurm-mpi-train-<user number>``, made where it is not there; None where it cannot be trusted."""
    folder = own_folder(environ.get("TMPDIR") or "/tmp")
    return folder if make_private(folder) else None


def own_folder(parent: str) -> Path:
    """Where this user's folder is in a folder that all users share; it may not be there."""
    return Path(parent).absolute() / f"{NAME}-{os.geteuid()}"


def make_private(folder: Path) -> bool:
    """Make a folder of mode 0700. Whether it is there now, and this user's alone."""
    try:
        if not _keeps_its_entries(folder.parent):
            return False
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            pass
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _keeps_its_entries(parent: Path) -> bool:
    """Whether only root and this user can rename or remove this user's entries: as in /tmp, by its sticky bit."""
    found = parent.stat()
    if found.st_uid not in (0, os.geteuid()):
        return False
    return not found.st_mode & 0o022 or bool(found.st_mode & stat.S_ISVTX)
