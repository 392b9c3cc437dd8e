"""The proof that a file of tokens is as it was written, at a cost that does not grow with the file.

Every chunk has a hash. A file is bound by its identity to the last time when all of them were compared: as long as
inode, size and times are the same, nothing has written to it, and only some chunks are read again, others at each
look. So a start takes the same time whatever the data's size; a disk that spoils what nobody wrote to is found in
time. Where the identity is another, every chunk is compared.
"""

import hashlib
import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 16 * 2**20
CHUNKS_AT_A_LOOK = 8
"""128 MiB, in a tenth of a second where they are in memory."""
THREADS = 8


def identity(path: Path) -> list[int]:
    """What changes when a file is written to or replaced: inode, size, and both times in nanoseconds.

    Not the device, which is another on each host that mounts the same file system.
    """
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def chunk_hash(content: bytes | bytearray) -> str:
    """The first 16 bytes of the SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()[:32]


def wrong_file(folder: Path, hashes: Mapping[str, Sequence[str]], whole: bool) -> str | None:
    """The name of the first file in which a chunk is not as it was written; None where there is none.

    Args:
        folder: where they lie.
        hashes: of every chunk of each file, by its name.
        whole: compare all chunks; else `CHUNKS_AT_A_LOOK` of them, others each time.
    """
    every = [(name, number) for name in hashes for number in range(len(hashes[name]))]
    # A generator of its own: the run's must not depend on how much there is to look at.
    chosen = every if whole else random.Random().sample(every, min(CHUNKS_AT_A_LOOK, len(every)))
    files = {name: os.open(folder / name, os.O_RDONLY) for name in hashes}

    def is_wrong(chunk: tuple[str, int]) -> bool:
        name, number = chunk
        return chunk_hash(os.pread(files[name], CHUNK, number * CHUNK)) != hashes[name][number]

    try:
        with ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0)))) as pool:
            return next(
                (name for (name, _), wrong in zip(chosen, pool.map(is_wrong, chosen), strict=True) if wrong), None
            )
    finally:
        for file in files.values():
            os.close(file)
