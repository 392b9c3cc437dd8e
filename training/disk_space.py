"""Whether the disk has room for the checkpoints of a run, found before the first step and not after hours."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from training.errors import InputError, StorageError

# config.json, tokenizer and so on, and the folder itself; a tokenizer's file is some megabytes at most.
FILES = 12
SMALL_FILES_BYTES = 8 << 20


@dataclass(frozen=True)
class Room:
    """What a file system has left for an ordinary user; None where it does not say."""

    bytes: int
    inodes: int | None


def room_at(folder: Path) -> Room:
    """What the file system of this folder has left."""
    status = os.statvfs(folder)
    # Some file systems make inodes as they need them, and report none in all.
    return Room(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)


def check_room(
    room: Room, checkpoint: int, keep: int, there: int, evaluated: bool, folder: Path, resuming: bool
) -> str | None:
    """Refuse a disk that cannot take one checkpoint; a warning where it cannot take all of them, else None.

    Args:
        room: what is left.
        checkpoint: bytes of one.
        keep: how many are kept.
        there: how many are there already.
        evaluated: a best one may be kept besides.
        folder: where they lie, for the message.
        resuming: the run goes on there; nothing is wrong with the request then.

    Raises:
        InputError: with both numbers.
        StorageError: the same, of a run that is resumed.
    """
    fault = None
    if room.bytes < checkpoint:
        fault = f"{folder} has {size(room.bytes)} left and one checkpoint takes {size(checkpoint)}: free space there"
    elif room.inodes is not None and room.inodes < FILES:
        fault = f"{folder} has {room.inodes} inodes left and one checkpoint takes {FILES}: remove files there"
    if fault is not None and resuming:
        raise StorageError(f"{fault}, then run the same command again", errno.ENOSPC)
    if fault is not None:
        raise InputError(f"{fault}, or choose another --output-dir")
    # The next one is written before the oldest is removed.
    more = max(1, keep + 1 + evaluated - there)
    if room.bytes < more * checkpoint or (room.inodes is not None and room.inodes < more * FILES):
        left = f"{size(room.bytes)} and {room.inodes} inodes" if room.inodes is not None else size(room.bytes)
        return (
            f"warning: {folder} has {left} left, and {more} more checkpoints of {size(checkpoint)} and {FILES} files "
            f"may come to lie there: free space, or lower --keep-checkpoints {keep}"
        )
    return None


def size(count: float) -> str:
    """A number of bytes, as a person reads it: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
