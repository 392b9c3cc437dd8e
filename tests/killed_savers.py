"""Saves a checkpoint again and again, each time in a process that SIGKILL ends at another point.

    python tests/killed_savers.py FOLDER

Imports once and forks for each point, which lies at a byte of the files or before one of the system calls that make
a checkpoint. Each child finds the checkpoint of step 4 and saves step 8, keeping one. Prints one JSON line per
child: its folder, and what it was to be killed at.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tiny_training import save, saver_of, tiny, train_on
from training import publish

BYTE_OFFSETS = 20
CALLS = ("mkdir", "fsync", "rename", "rmdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch(at_byte: int | None, at_call: int | None) -> Callable[[], tuple[int, list[str]]]:
    """Be killed at that byte of all that is written, or before that call; without either, count them."""
    written = 0
    calls: list[str] = []
    write_all = publish.write_all

    def write(descriptor: int, piece: memoryview) -> None:
        nonlocal written
        if at_byte is not None and written + len(piece) >= at_byte:
            write_all(descriptor, piece[: at_byte - written])
            die()
        write_all(descriptor, piece)
        written += len(piece)

    def watched(name: str) -> Callable[..., object]:
        call = getattr(os, name)

        def wrapper(*arguments, **options):
            if at_call == len(calls):
                die()
            calls.append(name)
            return call(*arguments, **options)

        return wrapper

    publish.write_all = write
    for name in CALLS:
        setattr(os, name, watched(name))
    return lambda: (written, calls)


def child(folder: Path, state, at_byte: int | None, at_call: int | None) -> tuple[int, list[str]]:
    count = watch(at_byte, at_call)
    save(saver_of(folder, *state, resumed_step=4, keep=1), 8)
    return count()


def main(root: Path) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not live on in a child.
    state = tiny()
    save(saver_of(root / "original", *state), 4)
    train_on(*state)

    def run(name: str, at_byte: int | None, at_call: int | None) -> tuple[int, list[str]]:
        folder = shutil.copytree(root / "original", root / name)
        receiver, sender = os.pipe()
        process = os.fork()
        if process == 0:
            os.write(sender, json.dumps(child(folder, state, at_byte, at_call)).encode())
            os._exit(0)
        os.close(sender)
        with os.fdopen(receiver) as pipe:
            told = pipe.read()
        _, status = os.waitpid(process, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed == (at_byte is not None or at_call is not None), (name, status)
        return tuple(json.loads(told)) if told else (0, [])

    written, calls = run("rehearsal", None, None)
    for number in range(BYTE_OFFSETS):
        # Not to the very end: the manifest's seconds have not always the same number of digits.
        byte = 1 + number * (written - 64) // (BYTE_OFFSETS - 1)
        run(f"byte-{byte}", byte, None)
        print(json.dumps({"folder": f"byte-{byte}", "at": f"byte {byte} of {written}"}), flush=True)
    for number, name in enumerate(calls):
        run(f"call-{number}", None, number)
        print(json.dumps({"folder": f"call-{number}", "at": f"before {name}, call {number}"}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
