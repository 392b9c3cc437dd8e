"""When the next checkpoint is due: every so many steps, every so many minutes, or as often as pays.

`auto` is Young's rule: with a save that costs C seconds of training and a fault every M seconds, least time is
lost at an interval of √(2·C·M). Nothing here reads a clock."""

import math
import re
from collections import deque
from dataclasses import dataclass
from statistics import median

from training.errors import InputError

# Meta's research clusters fail every 7.9 h at 1,024 GPUs, and in proportion to their number (arXiv 2410.21680).
MTBF_HOURS = 8.0
MTBF_RANKS = 1024
# A save more often than once a minute is nearly always a mistake of the measurement, and no fault is so rare
# that losing more than an hour should be planned.
AUTO_LEAST_SECONDS = 60.0
AUTO_MOST_SECONDS = 3600.0
# Of the time between two saves, at most half is spent writing them.
WRITING_SHARE = 0.5
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
FORM = re.compile(r"(\d+(?:\.\d+)?)([smh])")


@dataclass(frozen=True)
class Interval:
    """How far checkpoints are apart: exactly one of the three is set, or none where only the end is saved."""

    steps: int | None = None
    seconds: float | None = None
    auto: bool = False


def parse_interval(text: str) -> Interval:
    """The interval that `500`, `10m` or `auto` stands for; `0` saves only at the end.

    Raises:
        InputError: it is none of these.
    """
    text = text.strip()
    if text == "auto":
        return Interval(auto=True)
    if text.isascii() and text.isdigit():
        return Interval(steps=int(text) or None)
    match = FORM.fullmatch(text)
    if match is None or float(match.group(1)) == 0:
        raise InputError(
            f"--ckpt-freq {text}: a number of steps (500), of minutes (10m; s and h too), 0 for only at the end, or "
            f"auto is wanted"
        )
    return Interval(seconds=float(match.group(1)) * UNITS[match.group(2)])


def mtbf_seconds(hours: float | None, world_size: int) -> float:
    """Mean seconds between faults: as given, else by the number of ranks."""
    return 3600 * (hours if hours is not None else MTBF_HOURS * MTBF_RANKS / world_size)


def auto_seconds(cost: float | None, duration: float, mtbf: float) -> float:
    """Seconds from one save to the next by Young's rule.

    Args:
        cost: seconds of training that the last save cost; None before the first one, which then comes early, to
            measure it.
        duration: seconds until the last save was on disk.
        mtbf: mean seconds between faults.
    """
    if cost is None:
        return AUTO_LEAST_SECONDS
    best = math.sqrt(2 * cost * mtbf)
    return max(AUTO_LEAST_SECONDS, duration / WRITING_SHARE, min(best, AUTO_MOST_SECONDS))


def is_due(
    interval: Interval, step: int, since_last: float, cost: float | None, duration: float, mtbf: float, busy: bool
) -> bool:
    """Whether a checkpoint is to be made after this step.

    Args:
        interval: what was asked.
        step: optimizer steps made by then.
        since_last: seconds since the last save, or since training began.
        cost, duration, mtbf: as `auto_seconds` takes them.
        busy: the last save is still being written.
    """
    if interval.steps is not None:
        return step % interval.steps == 0
    # A save that would only wait for the one before it can as well come a step later.
    if busy or (interval.seconds is None and not interval.auto):
        return False
    wanted = interval.seconds if interval.seconds is not None else auto_seconds(cost, duration, mtbf)
    return since_last >= wanted


class SaveCost:
    """What a save costs the training: the seconds it stood still, and those that steps took longer meanwhile."""

    def __init__(self) -> None:
        self._undisturbed: deque[float] = deque(maxlen=50)
        self._slowdown = 0.0
        self._blocking = 0.0

    def begin(self, blocking: float) -> None:
        """A save has been captured."""
        self._blocking, self._slowdown = blocking, 0.0

    def step(self, seconds: float, writing: bool) -> None:
        """A step was made, while a save was being written or not."""
        if not writing:
            self._undisturbed.append(seconds)
        elif self._undisturbed:
            self._slowdown += max(0.0, seconds - median(self._undisturbed))

    @property
    def seconds(self) -> float:
        """Of the last save, as far as it is known."""
        return self._blocking + self._slowdown
