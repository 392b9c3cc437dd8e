"""The transcripts of the documentation: the commands, what is shown of their output, and when that is what they print.

A block marked ``console`` is a transcript: a line with ``$ `` in front is typed, and what follows is its output. One
marked ``toml`` whose first line is ``# NAME`` is a file of that name, in the directory where that is done. Of one
marked ``python`` the output is the block marked ``text`` right below. Shown and printed text are the same but for this:

- ``…`` alone on a line stands for any lines, also none, and within a line for any text;
- a number may be another one, except that of a rank or an attempt, of ranks and nodes that are counted, and an exit
  status; hosts differ by their numbers only;
- spaces that line columns up are one space;
- the project lies in ``/home/you/slurm-mpi-train``.

A number of four digits or more that is typed after it was shown, such as a process id, is the one that was printed.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

HOME = "/home/you/slurm-mpi-train"
NUMBER = r"\d[\d.,:]*(?:e[+-]\d+)?"
AS_SHOWN = r"(?<=rank )\d+|(?<=attempt )\d+|(?<=exit status )\d+|(?<=\()\d+(?=\))|\b\d+(?= (?:ranks?|nodes?)\b)"


class Exchange(NamedTuple):
    """A command and what the page shows of its output, line by line."""

    command: str
    shown: list[str]


def exchanges(page: str) -> Iterator[Exchange]:
    """All transcripts of a page, in order."""
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            yield Exchange(command, shown)


def files(page: str) -> Mapping[str, str]:
    """The files that the page has its reader write, by name."""
    return {block.split()[1]: block for block in blocks(page, "toml") if block.startswith("# ")}


def programs(page: str) -> Iterator[tuple[str, list[str]]]:
    """Each Python of a page whose output is shown, and what is shown of it."""
    for code, shown in re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield code, shown.splitlines()


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def agree(shown: list[str], printed: str, project: Path) -> bool:
    """Whether a command printed what the page shows."""
    lines = ["(?:.*\n)*" if line == "…" else re.escape(plain(line)).replace("…", ".*") + "\n" for line in shown]
    return re.fullmatch("".join(lines), plain(printed.replace(str(project), HOME))) is not None


def plain(text: str) -> str:
    """Without what may differ."""
    text = re.sub(f"({AS_SHOWN})|{NUMBER}", lambda found: found[1] or "N", text)
    return re.sub(r"[^\S\n]+(\n|$)", r"\1", re.sub(r"(?<=\S)[^\S\n]{2,}", " ", text))


def numbers_of(shown: list[str], printed: str) -> Mapping[str, str]:
    """Which long number that is shown was which when it was printed; none where lines are left out between."""
    pairs = zip(re.findall(r"\d+", "\n".join(shown)), re.findall(r"\d+", printed), strict=False)
    return {} if "…" in shown else {one: other for one, other in pairs if len(one) >= 4}


def as_printed(command: str, numbers: Mapping[str, str]) -> str:
    """What is to be typed, by `numbers_of`."""
    return re.sub(r"\d+", lambda number: numbers.get(number[0], number[0]), command)
