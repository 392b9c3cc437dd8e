"""Text for people at a terminal: in columns, and without what would steer the terminal.

What models and data say may move the cursor, rename the window or turn writing around.
"""

import io
import re
import sys
from collections.abc import Sequence
from typing import TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def take_any_letter() -> None:
    """From here on a letter that the standard output's encoding lacks (of a job with ``LANG=en_US``) is printed as ?:
    no run may end by it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def plain(text: str) -> str:
    """The text with a ? for each control character but tab and line break, and for what turns writing around."""
    return _CONTROL.sub("?", text)


def plain_on_a_terminal(text: str, out: TextIO) -> str:
    """A result as it is for a file or pipe, and `plain` for a terminal."""
    return plain(text) if out.isatty() else text


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with their cells in columns; a row of fewer cells ends in a sentence, which may run on."""
    whole = [head, *(row for row in rows if len(row) == len(head))]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in [head, *rows]
    ]
