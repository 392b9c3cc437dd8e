"""What Slurm and people ask of the launcher, as signals, kept until it can be done: also between two attempts.

USR1 and USR2 go on to every rank. The first Ctrl-C asks to save and stop, as USR1 does; another one, TERM and HUP stop
the ranks now.
"""

import signal
from collections.abc import Callable
from typing import Any

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)


class Requests:
    """What was asked so far."""

    def __init__(self, ask_why: Callable[[], str]) -> None:
        """``ask_why()`` tells why a warning came, when it does."""
        self._ask_why = ask_why
        self.warnings: list[int] = []
        """Signals that the ranks have not been told yet."""
        self.warned = False
        """Whether an attempt's ranks were told to save and stop."""
        self.why_warned: str | None = None
        self.by_keyboard = False
        self.stopped_by: int | None = None

    @property
    def warned_or_to_warn(self) -> bool:
        return self.warned or bool(self.warnings)

    def told(self) -> None:
        """The ranks have been told. Why is asked only now: they must not wait for the answer."""
        self.warned = True
        self.why_warned = self.why_warned or ("Ctrl-C" if self.by_keyboard else self._ask_why())

    def listen(self) -> None:
        """Take the signals from now on."""

        def warn(number: int, _frame: Any) -> None:
            if number not in self.warnings:
                self.warnings.append(number)

        def interrupt(number: int, frame: Any) -> None:
            if self.by_keyboard:
                stop(number, frame)
            else:
                self.by_keyboard = True
                warn(signal.SIGUSR1, frame)

        def stop(number: int, _frame: Any) -> None:
            if self.stopped_by is None:
                self.stopped_by = number

        for number in WARNINGS:
            signal.signal(number, warn)
        signal.signal(signal.SIGINT, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)
