"""What this rank does now, in a small file that a launcher on the same host may watch.

`CLUSTER_HEARTBEAT` names the file; without it nothing is written, and only the seconds by phase are counted. Each
change overwrites the whole file by one write of 1024 bytes, so that a reader never finds half of one: a JSON object
padded with spaces.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

HEARTBEAT_VARIABLE = "CLUSTER_HEARTBEAT"
SIZE = 1024

Phase = Literal["start", "prepare", "compile", "train", "evaluate", "save"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Heartbeat:
    """Told by the main thread what it does, and by the thread that writes checkpoints, as soon as one is in place."""

    def __init__(self, path: str | None, age: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin in phase `start`.

        Args:
            path: an existing file; None, or a file that cannot be opened, writes nothing.
            age: seconds that this process has lived already.
            clock: seconds.
        """
        self._clock = clock
        self._lock = threading.RLock()
        self._file: int | None = None
        if path:
            try:
                self._file = os.open(path, os.O_RDWR)
            except OSError:
                # A watcher that has gone must not end the training that it watched.
                self._file = None
        self._phase: Phase = "start"
        self._at = ""
        self._since = clock() - age
        self._spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._step = 0
        self._resumed_step = 0
        self._saved_step: int | None = None
        self._saved_train_seconds = 0.0
        self._step_seconds: float | None = None
        self._busy_seconds = 0.0
        self._write()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Heartbeat":
        """The heartbeat that this process's launcher asked for."""
        return cls(environ.get(HEARTBEAT_VARIABLE), process_age())

    @property
    def phase(self) -> Phase:
        """What the main thread does now."""
        return self._phase

    def enter(self, phase: Phase) -> None:
        """From now on the main thread does this."""
        with self._lock:
            now = self._clock()
            self._spent[self._phase] += now - self._since
            self._phase, self._at, self._since = phase, "", now
        self._write()

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """The main thread does this in a `with` block, and afterwards what it did before."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def at(self, place: str) -> None:
        """Where in a step the main thread is; told in phase `train` alone."""
        self._at = place if self._phase == "train" else ""
        self._write()

    def resumed(self, step: int, saved: bool) -> None:
        """This attempt goes on from `step`; `saved` where that is a checkpoint's."""
        self._step = self._resumed_step = step
        self._saved_step = step if saved else None
        self._write()

    def made_step(self, step: int, seconds: float, busy: float) -> None:
        """An optimizer step was made, in so many seconds, of which `busy` were this rank's own work."""
        self._step, self._step_seconds = step, seconds
        self._busy_seconds += busy
        self._write()

    def saved(self, step: int, train_seconds: float) -> None:
        """The checkpoint of `step` is in place; its state was captured when `seconds()["train"]` was this."""
        with self._lock:
            if self._saved_step is not None and step < self._saved_step:
                return
            self._saved_step, self._saved_train_seconds = step, train_seconds
        self._write()

    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to now; their sum is the age of the process."""
        with self._lock:
            spent = dict(self._spent)
            spent[self._phase] += self._clock() - self._since
        return spent

    def _write(self) -> None:
        # Under the lock, so that of two threads the one that knows less does not write last.
        with self._lock:
            if self._file is None:
                return
            beat: dict[str, Any] = {
                "phase": self._phase,
                "step": self._step,
                "at": self._at,
                "resumed_step": self._resumed_step,
                "saved_step": self._saved_step,
                "step_seconds": _rounded(self._step_seconds),
                "busy_seconds": round(self._busy_seconds, 6),
                "seconds": {phase: round(seconds, 6) for phase, seconds in self.seconds().items()},
                "saved_train_seconds": round(self._saved_train_seconds, 6),
                "time": time.time(),
            }
            try:
                os.pwrite(self._file, json.dumps(beat).encode().ljust(SIZE), 0)
            except OSError:
                self._file = None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def process_age() -> float:
    """Seconds since this process was started; 0 where the kernel does not tell."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            # The second field is the command in brackets, which may hold spaces and brackets itself.
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
