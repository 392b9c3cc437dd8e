"""Text for a terminal: what models and data say may move the cursor, rename the window or turn writing around."""

import re
from typing import TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with a ? for each control character but tab and line break, and for what turns writing around."""
    return _CONTROL.sub("?", text)


def plain_on_a_terminal(text: str, out: TextIO) -> str:
    """A result as it is for a file or pipe, and `plain` for a terminal."""
    return plain(text) if out.isatty() else text
