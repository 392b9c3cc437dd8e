"""Text files that grow: many of them read line by line, one copied as it comes, and the end of one.

Of many one look at their sizes, then only what is new. None stays open, so 1,024 of them need no descriptors, and no
line is lost, cut or mixed with another: what has no end yet waits. A file that was cut short begins anew; of one that
was renamed and begun anew the rest comes first.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from cluster.terminal import plain_bytes

CHUNK = 1 << 18
"""Bytes that are read of one file at a time."""
LONGEST_LINE = 1 << 20
"""Bytes after which a line that does not end is taken as one."""
TAIL_LINES = 25
TAIL_BYTES = 32_768

Render = Callable[[bytes], bytes]
"""From whole lines, each with its end, to what is shown of them."""


class GrowingLog:
    """One file, which may not exist yet. `last`: how many of the lines that it has now are new; None for all."""

    def __init__(self, path: Path, render: Render, last: int | None = None) -> None:
        self._path, self._render = str(path), render
        self._inode: int | None = None
        self._size = self._offset = 0
        if last is not None:
            self._inode, self._offset = _start_of_last_lines(self._path, last)
            self._size = self._offset

    def read(self) -> Iterator[bytes]:
        """What has become whole since the last call, a chunk at a time."""
        try:
            now = os.stat(self._path)
        except OSError:
            return
        if self._inode not in (None, now.st_ino):
            yield from self._rest_of_the_old_one()
            self._offset = self._size = 0
        elif now.st_size < self._size:
            self._offset = self._size = 0
        self._inode = now.st_ino
        if now.st_size != self._size:
            yield from self._lines(self._path, to_the_end=False)

    def rest(self) -> Iterator[bytes]:
        """What is left once nobody writes any more, also of a line without an end."""
        yield from self.read()
        yield from self._lines(self._path, to_the_end=True)

    def _lines(self, path: str, to_the_end: bool) -> Iterator[bytes]:
        wanted = CHUNK
        try:
            with open(path, "rb", buffering=0) as file:
                while True:
                    file.seek(self._offset)
                    data = file.read(wanted)
                    self._size = self._offset + len(data)
                    is_all, end = len(data) < wanted, data.rfind(b"\n") + 1
                    if end:
                        lines = data[:end]
                    elif data and (len(data) >= LONGEST_LINE or (is_all and to_the_end)):
                        lines, end = data + b"\n", len(data)
                    elif is_all:
                        return
                    else:
                        wanted *= 2  # the line goes on beyond what was read
                        continue
                    wanted = CHUNK
                    self._offset += end
                    if shown := self._render(lines):
                        yield shown
                    if is_all and not to_the_end:
                        return
        except OSError:
            return

    def _rest_of_the_old_one(self) -> Iterator[bytes]:
        """Of the file that had this name before, under the name that it has now, beside it."""
        try:
            with os.scandir(os.path.dirname(self._path)) as entries:
                old = next((entry.path for entry in entries if entry.inode() == self._inode), None)
        except OSError:
            return
        if old is not None:
            yield from self._lines(old, to_the_end=True)


def read_all(logs: Iterable[GrowingLog]) -> Iterator[bytes]:
    """One look at all of them."""
    for log in logs:
        yield from log.read()


def rest_of_all(logs: Iterable[GrowingLog]) -> Iterator[bytes]:
    for log in logs:
        yield from log.rest()


def prefixed(prefix: str) -> Render:
    """Each line as it is, after the prefix."""
    before = prefix.encode()

    def render(lines: bytes) -> bytes:
        return before + lines[:-1].replace(b"\n", b"\n" + before) + b"\n" if before else lines

    return render


def _start_of_last_lines(path: str, count: int) -> tuple[int | None, int]:
    """The file's inode (None where there is none yet), and where the last `count` lines of it begin."""
    try:
        with open(path, "rb", buffering=0) as file:
            inode, end = os.fstat(file.fileno()).st_ino, file.seek(0, 2)
            at = end
            wanted = count
            while at > 0:
                before = max(0, at - CHUNK)
                file.seek(before)
                data = file.read(at - before)
                position = len(data)
                while (position := data.rfind(b"\n", 0, position)) >= 0:
                    if before + position == end - 1 and count:
                        continue  # the end of the last line
                    if wanted <= 1:
                        return inode, before + position + 1
                    wanted -= 1
                at = before
            return inode, 0
    except OSError:
        return None, 0


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
