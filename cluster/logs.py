"""Text files that grow: copy what is new, show the end."""

from pathlib import Path
from typing import BinaryIO

TAIL_LINES = 25
TAIL_BYTES = 32_768


class LogFollower:
    """Copies what a growing file gains. The file may not exist yet."""

    def __init__(self, path: Path, out: BinaryIO) -> None:
        self._path = path
        self._out = out
        self._file: BinaryIO | None = None

    def copy_new(self) -> None:
        if self._file is None:
            if not self._path.exists():
                return
            self._file = self._path.open("rb")
        if new := self._file.read():
            self._out.write(new)
            self._out.flush()


def tail(path: Path) -> str:
    """Last lines of a text file, empty where there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace").replace("\0", "")  # Open MPI 5 ends its messages with NUL
    return "\n".join(text.splitlines()[-TAIL_LINES:])
