"""Text for a terminal: what runs print may move the cursor, rename the window or pass for another rank's words."""

import re
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
