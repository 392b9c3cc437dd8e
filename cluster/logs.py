"""Text files that grow: copy what is new, show the end. And words to whoever reads along, if anybody still does."""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from cluster.terminal import plain, plain_bytes

TAIL_LINES = 25
TAIL_BYTES = 32_768


def say(lines: Iterable[str]) -> None:
    """Print lines, if any. A reader that has gone, or a full disk under the log, must not end the run they tell of."""
    try:
        print("".join(f"{plain(line)}\n" for line in lines), end="", flush=True)
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LogFollower:
    """Copies what a growing file gains. The file may not exist yet. What cannot be read or written now is left."""

    def __init__(self, path: Path, out: BinaryIO) -> None:
        self._path = path
        self._out = out
        self._file: BinaryIO | None = None

    def copy_new(self) -> None:
        with suppress(OSError):
            self._file = self._file or self._path.open("rb")
            if new := self._file.read():
                self._out.write(plain_bytes(new, self._out))
                self._out.flush()


def tail(path: Path) -> str:
    """Last lines of a text file, empty where there is none."""
    try:
        file = path.open("rb")
    except OSError:
        return ""
    with file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace").replace("\0", "")  # Open MPI 5 ends its messages with NUL
    return "\n".join(text.splitlines()[-TAIL_LINES:])
