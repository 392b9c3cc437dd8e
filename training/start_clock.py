"""Where the time of a start went: from this process's beginning to its first step."""

import time
from collections.abc import Callable


class StartClock:
    """Seconds by phase, told as each one ends."""

    def __init__(self, age: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin `age` seconds ago, where the process did."""
        self._clock = clock
        self._since = clock() - age
        self.seconds: dict[str, float] = {}
        """In the order in which the phases ended."""

    def ended(self, phase: str) -> None:
        """This phase has ended; the first time counts."""
        if phase not in self.seconds:
            now = self._clock()
            self.seconds[phase] = round(now - self._since, 6)
            self._since = now
