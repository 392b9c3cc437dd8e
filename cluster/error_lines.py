"""Errors alone, out of what ranks print and say: tracebacks of logs, how ranks ended that failed, the verdict. Pure."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cluster.records import whole_records

TRACEBACK = b"Traceback (most recent call last):"
LINKS = (b"During handling of the above exception", b"The above exception was the direct cause")
"""What stands between two tracebacks of one error."""


class Tracebacks:
    """Of a rank's lines has those of tracebacks shown; keeps what it is within from one chunk to the next."""

    def __init__(self, show: Callable[[bytes], bytes]) -> None:
        self._show = show
        self._mark: bytes | None = None
        """Within a traceback: what its lines begin with, such as torch's ``[rank3]: ``."""

    def __call__(self, lines: bytes) -> bytes:
        if self._mark is None and TRACEBACK not in lines and not any(link in lines for link in LINKS):
            return b""
        found = b"".join(line + b"\n" for line in lines[:-1].split(b"\n") if self._belongs(line))
        return self._show(found) if found else b""

    def _belongs(self, line: bytes) -> bool:
        if (at := line.find(TRACEBACK)) >= 0:
            self._mark = line[:at]
            return True
        if any(link in line for link in LINKS):
            return True
        if self._mark is None:
            return False
        words = line.removeprefix(self._mark)
        if not words.startswith((b" ", b"\t")):
            self._mark = None  # the exception itself, the last line
        return True


def failed(lines: bytes) -> Iterator[Mapping[str, Any]]:
    """Of the records of `cluster.records`, one a line, those of ranks that failed."""
    return (record for record in whole_records(lines) if record["state"] == "failed")


def failure(record: Mapping[str, Any]) -> str:
    """``rank 3 on r1n2 failed: exception, exit status 1, step 17: ValueError: boom``."""
    step = "" if record.get("step") is None else f", step {record['step']}"
    what = f"{record.get('outcome')}, exit status {record.get('status')}{step}"
    detail = str(record.get("detail") or "").strip().splitlines()
    return f"rank {record.get('rank')} on {record.get('host')} failed: {what}{': ' + detail[-1] if detail else ''}"
