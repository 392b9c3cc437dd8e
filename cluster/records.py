"""What ranks said of their beginning and of their end, kept in the attempt's ``ranks.jsonl`` as it comes.

One JSON object a line, with `state` (started, complete, saved or failed), `rank`, `host`, `gpu`, `pid` and `time_ns`
(nanoseconds since 1970); an end also has what `cluster.watch.Ending` has, and the `step` of the last heartbeat.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from cluster.private import private
from cluster.secret import without

STATES = ("started", "complete", "saved", "failed")


class Records:
    """The records of one attempt; the first end of a rank counts. What they quote is kept without these secrets."""

    def __init__(self, path: Path, secrets: Mapping[str, str]) -> None:
        self._path, self._secrets = path, secrets
        self._file: TextIO | None = None
        self._unwritten: list[str] = []
        self._by_state: dict[str, dict[int, dict[str, Any]]] = {state: {} for state in STATES}
        self.ended: set[int] = set()
        """Ranks that said how they ended."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record; `flush` writes it down."""
        state, rank = record["state"], record["rank"]
        if rank in self._by_state[state] or (state != "started" and rank in self.ended):
            return
        record = {name: without(one, self._secrets) if isinstance(one, str) else one for name, one in record.items()}
        self._by_state[state][rank] = record
        if state != "started":
            self.ended.add(rank)
        self._unwritten.append(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Write down what is new, in one go: there may be a hundred thousand at once."""
        if not self._unwritten:
            return
        try:
            self._file = self._file or open(self._path, "a", opener=private)  # noqa: SIM115 (closed by `close`)
            self._file.write("".join(self._unwritten))
            self._file.flush()
        except OSError:
            pass  # a full disk must not keep the verdict from those who decide it
        self._unwritten.clear()

    def of(self, state: str) -> list[dict[str, Any]]:
        """The records of a state, in the order in which they came."""
        return list(self._by_state[state].values())

    def count(self, state: str) -> int:
        return len(self._by_state[state])

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()


def read_records(attempt_dir: Path) -> list[dict[str, Any]]:
    """All records of an attempt, in the order in which they came."""
    try:
        return list(whole_records((attempt_dir / "ranks.jsonl").read_bytes()))
    except FileNotFoundError:
        return []


def whole_records(lines: bytes) -> Iterator[dict[str, Any]]:
    """The records in these lines. After a full disk one may be half a line, which is left out."""
    for line in lines.splitlines():
        with suppress(ValueError):
            yield json.loads(line)
