"""On one node of a running attempt: asks the programs of its ranks for their Python stacks, and prints them as JSON.

    python -m cluster.stacks ATTEMPT_DIRECTORY LETTERS      at most so many of each

It uses what the watcher of each rank keeps for the question that the launcher asks where ranks hang: a file in memory,
and a signal that makes the program's Python write there. Launcher and watchers need not do anything.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.machine import children, handles_signal, process_state
from cluster.records import read_records
from cluster.watch import LONGEST_STACKS, STACK_SIGNAL, shorten

WITHIN = 3.0
"""Seconds in which programs may answer."""
QUIET = 0.3
"""Seconds without another word after which an answer is whole."""
LOOK_EVERY = 0.05
MEMORY = "/memfd:stacks (deleted)"
"""The link of the watcher's file, see memfd_create(2)."""


class Asked(NamedTuple):
    """A program that was asked: its process, and the file in which it answers."""

    program: int
    answer: Path


def main(arguments: Sequence[str]) -> int:
    attempt_dir, letters = arguments
    for told in stacks_here(Path(attempt_dir), int(letters)):
        print(*to_lines(told), sep="\n", flush=True)
    return 0


def to_lines(told: Mapping[str, Any]) -> list[str]:
    """One object for the rank, one for each line of its stacks: srun mixes long lines of several nodes."""
    head = {name: told[name] for name in ("rank", "host", "state")}
    lines = ({"rank": told["rank"], "line": line} for line in told["stacks"].splitlines())
    return [json.dumps(one) for one in (head, *lines)]


def from_lines(text: str) -> list[dict[str, Any]]:
    """What ranks told, from the lines of all nodes in any order; what is no answer is left out."""
    told: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue  # words of srun, ssh or a login script
        if not isinstance(one, dict) or not isinstance(one.get("rank"), int):
            continue
        rank = told.setdefault(one["rank"], {"rank": one["rank"], "host": "", "state": "", "stacks": ""})
        if "line" in one:
            rank["stacks"] += f"{one['line']}\n"
        else:
            rank.update(one)
    return list(told.values())


def stacks_here(attempt_dir: Path, letters: int) -> list[dict[str, Any]]:
    """Of each rank of this host that has begun and not ended: `rank`, `host`, `state`, `stacks` (empty: no answer).

    Of stacks longer than so many letters what matters most is left, see `watch.shorten`.
    """
    records = read_records(attempt_dir)
    over = {record["rank"] for record in records if record["state"] != "started"}
    here = [
        record
        for record in records
        if record["state"] == "started" and record["host"] == socket.gethostname() and record["rank"] not in over
    ]
    asked = {record["rank"]: ask(record["pid"]) for record in here}
    await_answers([one for one in asked.values() if one])
    return [
        {
            "rank": record["rank"],
            "host": record["host"],
            "state": process_state(one.program if one else record["pid"]),
            "stacks": shorten(read_answer(one), letters) if one else "",
        }
        for record in here
        for one in [asked[record["rank"]]]
    ]


def ask(watcher: int) -> Asked | None:
    """Ask the program below this watcher; None where the process is no watcher of ours, or its program no Python."""
    answer = next((path for path in _list(Path(f"/proc/{watcher}/fd")) if _link(path) == MEMORY), None)
    program = next((child for child in children(watcher) if handles_signal(child, STACK_SIGNAL)), None)
    if answer is None or program is None:
        return None
    try:
        os.truncate(answer, 0)
        os.kill(program, STACK_SIGNAL)
    except OSError:
        return None  # it has ended meanwhile
    return Asked(program, answer)


def await_answers(asked: Sequence[Asked]) -> None:
    """Return once all have answered and nothing more comes, or after `WITHIN`."""
    deadline, sizes, quiet_since = time.monotonic() + WITHIN, [0] * len(asked), time.monotonic()
    while asked and time.monotonic() < deadline:
        now = [_size(one.answer) for one in asked]
        if now != sizes:
            sizes, quiet_since = now, time.monotonic()
        if all(sizes) and time.monotonic() - quiet_since > QUIET:
            return
        time.sleep(LOOK_EVERY)


def read_answer(one: Asked) -> str:
    """What it wrote; of very many threads the last ones, the main thread among them."""
    try:
        return one.answer.read_bytes()[-LONGEST_STACKS:].decode(errors="replace")
    except OSError:
        return ""


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
