"""How long each rank was busy with a step: told in the message that the ranks exchange at every step anyway.

A message has room for 64 ranks. Where there are more they take turns, 64 at a time, so that neither message nor file
grows with them: of 1,024 ranks each is told at every 16th logged step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROOM = 64


@dataclass(frozen=True)
class RankTimes:
    """Seconds of one step in which ranks were busy themselves, waiting for no other."""

    step: int
    first_rank: int
    busy_seconds: Sequence[float]
    """Of `first_rank` and those after it."""

    def row(self) -> dict[str, Any]:
        """Its row of `rank_times.jsonl`."""
        seconds = [round(each, 6) for each in self.busy_seconds]
        return {"step": self.step, "first_rank": self.first_rank, "busy_seconds": seconds}


def whose_turn(step: int, world_size: int, log_freq: int) -> range:
    """The ranks that tell of this step."""
    turns = -(-world_size // ROOM)
    first = step // log_freq % turns * ROOM
    return range(first, min(first + ROOM, world_size))


def tell_time(busy: float, step: int, rank: int, world_size: int, log_freq: int) -> list[float]:
    """A rank's part of the message: added up over all ranks, each one's time stands in its own place."""
    turn = whose_turn(step, world_size, log_freq)
    return [busy if each == rank else 0.0 for each in (*turn, *[-1] * (min(world_size, ROOM) - len(turn)))]


def read_times(told: Sequence[float], step: int, world_size: int, log_freq: int) -> RankTimes:
    """What the sum of all parts says."""
    turn = whose_turn(step, world_size, log_freq)
    return RankTimes(step, turn.start, tuple(told[: len(turn)]))
