"""Errors alone, out of what ranks print and say: tracebacks of their logs, and how those ended that failed. Pure."""

import json

TRACEBACK = b"Traceback (most recent call last):"
LINKS = (b"During handling of the above exception", b"The above exception was the direct cause")
"""What stands between two tracebacks of one error."""


class Tracebacks:
    """Renders of a rank's lines those of tracebacks; keeps what it is within from one chunk to the next."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self._mark: bytes | None = None
        """Within a traceback: what its lines begin with, such as torch's ``[rank3]: ``."""

    def __call__(self, lines: bytes) -> bytes:
        if self._mark is None and TRACEBACK not in lines and not any(link in lines for link in LINKS):
            return b""
        return b"".join(self._prefix + line + b"\n" for line in lines[:-1].split(b"\n") if self._belongs(line))

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


def failures(lines: bytes) -> bytes:
    """Of the records of `cluster.records`, one a line, what is to be said of each rank that failed."""
    said = []
    for line in lines.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # half a line, after a full disk
        if record.get("state") == "failed":
            said.append(failure(record))
    return "".join(said).encode()


def failure(record: dict[str, object]) -> str:
    """``── rank 3 on r1n2 failed: exception, exit status 1, step 17: ValueError: boom``."""
    step = "" if record.get("step") is None else f", step {record['step']}"
    what = f"{record.get('outcome')}, exit status {record.get('status')}{step}"
    detail = str(record.get("detail") or "").strip().splitlines()
    return f"── rank {record.get('rank')} on {record.get('host')} failed: {what}{': ' + detail[-1] if detail else ''}\n"
