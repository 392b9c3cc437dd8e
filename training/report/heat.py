"""How long each rank was busy with each step, in a field of bounded size, whatever the numbers of ranks and steps.

A cell holds the longest time of its ranks and steps, and whose it was, so that no straggler and no spike vanishes.
Cells grow twofold as the field fills.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

ROWS, COLUMNS = 64, 256


class Cell(NamedTuple):
    """The longest time among some ranks and steps."""

    first_step: int
    end_step: int
    """The first step after it."""
    first_rank: int
    end_rank: int
    seconds: float
    """The rank's own, without waiting for others."""
    rank: int
    step: int


class Heat:
    """Filled with one time after another, in any order."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], tuple[float, int, int]] = {}
        self._steps = self._ranks = 1
        """Steps and ranks of a cell."""
        self.last_step = self.last_rank = 0

    def add(self, step: int, rank: int, seconds: float) -> None:
        """A rank was busy so long with a step."""
        self.last_step, self.last_rank = max(step, self.last_step), max(rank, self.last_rank)
        while step // self._steps >= COLUMNS:
            self._steps *= 2
            self._merge(lambda column, row: (column // 2, row))
        while rank // self._ranks >= ROWS:
            self._ranks *= 2
            self._merge(lambda column, row: (column, row // 2))
        place = (step // self._steps, rank // self._ranks)
        if place not in self._cells or seconds > self._cells[place][0]:
            self._cells[place] = (seconds, rank, step)

    def cells(self) -> Iterator[Cell]:
        """By step, then by rank."""
        for (column, row), (seconds, rank, step) in sorted(self._cells.items()):
            first_step, first_rank = column * self._steps, row * self._ranks
            yield Cell(first_step, first_step + self._steps, first_rank, first_rank + self._ranks, seconds, rank, step)

    def _merge(self, place_of: Callable[[int, int], tuple[int, int]]) -> None:
        before, self._cells = self._cells, {}
        for (column, row), told in before.items():
            place = place_of(column, row)
            self._cells[place] = max(told, self._cells.get(place, told))
