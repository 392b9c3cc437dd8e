"""A request to save and stop, as a signal: Slurm sends it some time before the job's end or preemption."""

import signal
from types import FrameType


class StopRequest:
    """True once SIGUSR1 has come to this process. The other ranks may not have got it: agree before acting
    on it."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGUSR1, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
