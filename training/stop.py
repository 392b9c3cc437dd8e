"""A request to save and stop, as a signal: Slurm sends SIGUSR1 some time before the job's end or preemption, a person
at a terminal types Ctrl-C."""

import os
import signal
from types import FrameType

from training.ranks import SINGLE, TORCHRUN


class StopRequest:
    """True once SIGUSR1 has come to this process, once or often. The other ranks may not have got it: agree before
    acting on it."""

    def __init__(self) -> None:
        self.requested = False
        self.by = "SIGUSR1"
        self._process = os.getpid()
        self._says = False
        signal.signal(signal.SIGUSR1, self._on_signal)

    def also_on_interrupt(self, says: bool) -> None:
        """Take Ctrl-C as a request too: the first asks, the second raises KeyboardInterrupt at once.

        Args:
            says: a line tells about it; true on one rank.
        """
        self._says = says
        signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        # The terminal sends it to all processes; one that a library forked from this one has this handler too.
        if os.getpid() != self._process:
            return
        if self.requested and self.by == "Ctrl-C":
            raise KeyboardInterrupt
        self.requested, self.by = True, "Ctrl-C"
        if self._says:
            # Not print: the handler may have come in the middle of another one.
            os.write(2, b"\nsaving and stopping after this step; Ctrl-C again stops at once\n")


def takes_interrupts(launcher: str, under_a_launcher_of_its_own: bool) -> bool:
    """Whether Ctrl-C at a terminal reaches this process as a person's wish: alone or under torchrun. mpirun and srun
    answer it themselves."""
    return launcher == SINGLE or (launcher == TORCHRUN and not under_a_launcher_of_its_own)
