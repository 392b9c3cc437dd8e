"""Files that a reader finds whole or not at all, and what is forced to disk."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PIECE_BYTES = 1 << 23


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """Write aside and rename, so that a reader never finds half a file.

    Args:
        path: over what is there.
        text: as UTF-8.
        mode: of the file, less the umask.

    Raises:
        OSError: the system refused; what was there before is there still.
    """
    # Process numbers repeat from host to host.
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(text)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """The same, of a value as JSON that people can read."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def force_to_disk(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pieces(data: memoryview) -> Iterator[memoryview]:
    """The data in slices: hashing and writing let other threads run, and a large slice does so for long."""
    for begin in range(0, len(data), PIECE_BYTES):
        yield data[begin : begin + PIECE_BYTES]


def write_all(descriptor: int, piece: memoryview) -> None:
    """Write the whole piece: the system may take a part of it."""
    while piece:
        piece = piece[os.write(descriptor, piece) :]
