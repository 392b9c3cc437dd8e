"""Directories and files that are their owner's alone, whatever the umask, and the refusal of those that are not.

A run directory is believed: its request is carried out again, its pickle is loaded, its hosts are logged in to. So it
counts only where it is a real directory, this user's own, in which nobody else can put anything.
"""

import os
import stat
from pathlib import Path

from cluster.errors import RequestError


def private(name: str, flags: int) -> int:
    """An opener for `open`: a new file is 0600, and a symbolic link in its place is refused (OSError)."""
    return os.open(name, flags | os.O_NOFOLLOW, 0o600)


def write_private(path: Path, text: str) -> None:
    """Have a file with this text there, 0600."""
    with open(path, "w", opener=private) as file:
        file.write(text)


def make_private_directory(path: Path) -> None:
    """Have the directory there, 0700. Raises as `check_private` does, and OSError where it cannot be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        check_private(path)
    path.chmod(0o700)


def check_private(path: Path) -> None:
    """Raise `RequestError` for a directory that is there and that others may have filled. Changes nothing."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if why := _not_private(found):
        raise RequestError(f"{path} {why}: what lies in it is not believed, so choose another directory")


def open_private(path: Path) -> int:
    """A descriptor of the directory, which stays that one whatever is put in its place; raises as `check_private`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if why := _not_private(os.fstat(descriptor)):
        os.close(descriptor)
        raise RequestError(f"{path} {why}: what lies in it is not believed")
    return descriptor


def _not_private(found: os.stat_result) -> str | None:
    """Why this is no directory of this user's alone to write, worded to follow its name."""
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "is no directory"
    if found.st_uid != os.geteuid():
        return f"belongs to another user ({found.st_uid})"
    if found.st_mode & 0o022:
        return f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o}, wanted 0700)"
    return None
