"""Text for people at a terminal: in columns, to whoever still reads, and without what would steer the terminal.

What runs print may move the cursor, rename the window or pass for another rank's words.
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import BinaryIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_BYTES = re.compile(rb"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]|\xc2[\x80-\x9f]")


def plain(text: str) -> str:
    """The text with a ? for each control character but tab and line break, and for what turns writing around."""
    return _CONTROL.sub("?", text)


def line(text: str) -> str:
    """The same for what must stay one line."""
    return plain(text).replace("\n", "?")


def plain_bytes(data: bytes, out: BinaryIO) -> bytes:
    """What a program printed, as it is for a file or pipe; on a terminal it has colours and carriage returns alone."""
    return _CONTROL_BYTES.sub(b"?", data) if out.isatty() else data


def say(lines: Iterable[str]) -> None:
    """Print lines, if any. A reader that has gone, or a full disk under the log, must not end the run they tell of."""
    try:
        print("".join(f"{plain(each)}\n" for each in lines), end="", flush=True)
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def or_dash(value: float | str | None, form: str = "") -> str:
    """The value in that format; a dash for one that is not known."""
    return "–" if value is None else format(value, form)


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines with their cells in columns; those of the columns `right` end below each other. No control characters."""
    clean = [["".join(sign if sign.isprintable() else "?" for sign in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in clean
    ]
