"""The grid of a sweep: ``lr=1e-4,3e-4 seed=0..4`` becomes every combination, each with a name of its own. Pure."""

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from cluster.errors import RequestError

LARGEST = 100_000
"""Combinations beyond which nobody means it."""
FEW = 5
"""Options beyond which there may be fewer combinations."""
NAMING = ("experiment-name", "e", "output-dir", "save-dir")
"""Options that name a run directory: the sweep itself gives each run its own."""

_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*", re.ASCII)
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+=@-]|\.(?=\.)", re.ASCII)
LONGEST_NAME = 100


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each option, in the order given. A value ``0..4`` stands for 0, 1, 2, 3 and 4.

    Raises `RequestError` for a word that is not understood, and for anything that is given twice.
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        option, equals, text = word.partition("=")
        if not equals or not _OPTION.fullmatch(option):
            raise RequestError(f"--grid {word}: wanted OPTION=VALUE,VALUE without dashes, such as lr=1e-4,3e-4")
        option = option.replace("_", "-")
        if option in NAMING:
            raise RequestError(f"--grid {option}: the sweep gives each run its own")
        if option in grid:
            raise RequestError(f"--grid {option} is given twice: put all its values into one")
        grid[option] = [value for item in text.split(",") for value in _values(option, item)]
        if twice := [value for value, times in Counter(grid[option]).items() if times > 1]:
            raise RequestError(f"--grid {option}: {twice[0]} is given twice")
    number = math.prod(map(len, grid.values()))
    if number > LARGEST or number * len(grid) > FEW * LARGEST:
        raise RequestError(
            f"--grid has {number:,} combinations of {len(grid)} options: at most {LARGEST:,}, "
            f"and fewer where there are more than {FEW} options"
        )
    return grid


def _values(option: str, item: str) -> Sequence[str]:
    """The values that one item between commas stands for."""
    bounds = _RANGE.fullmatch(item)
    if item == "" or not item.isprintable():
        raise RequestError(f"--grid {option}: a value is empty, wanted {option}=VALUE,VALUE")
    if bounds is None:
        return [item]
    first, last = int(bounds[1]), int(bounds[2])
    if not 0 <= last - first < LARGEST:
        raise RequestError(f"--grid {option}={item}: wanted a range from the smaller to the larger, both in it")
    return [str(number) for number in range(first, last + 1)]


def combinations(grid: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination; the last option changes first."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def name_of(values: Mapping[str, str]) -> str:
    """``lr=1e-4_seed=0``, a name for a directory; where it had to be changed for that, a hash keeps it apart."""
    plain = "_".join(f"{option}={value}" for option, value in values.items())
    safe = _UNSAFE.sub("-", plain)
    if safe == plain and len(safe) <= LONGEST_NAME:
        return safe
    return f"{safe[:LONGEST_NAME]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def index_list(indexes: Sequence[int]) -> str:
    """Increasing numbers as sbatch's ``--array`` has them: ``0-3,7``."""
    runs = itertools.groupby(enumerate(indexes), key=lambda item: item[1] - item[0])
    spans = [[number for _, number in run] for _, run in runs]
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans)
