"""The trainer with one fault built in, which strikes in the first attempt alone.

python sabotage.py nan@1:20 --preset smoke …      WHAT@RANK:STEP, then the trainer's own arguments
"""

import os
import sys
from typing import Any

from steps import Fault


def arm(fault: Fault, rank: int) -> None:
    """Let the fault strike when this rank begins the forward pass of that step."""
    from training.heartbeat import Heartbeat

    tell = Heartbeat.at

    def at(self: Heartbeat, place: str) -> None:
        tell(self, place)
        if place == "forward" and self.phase == "train" and fault.strikes(rank, self._step):
            strike(fault)

    Heartbeat.at = at  # type: ignore[method-assign]


def strike(fault: Fault) -> None:
    match fault.what:
        case "nan":
            fault.announce()
            poison_the_loss()
        case "collective":
            import torch.distributed

            fault.announce()
            torch.distributed.barrier()  # which no other rank calls
        case _:
            fault.strike()


def poison_the_loss() -> None:
    """Make the loss of this step a NaN, as a broken sample would."""
    from torch.nn.modules.module import register_module_forward_hook

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        if getattr(output, "loss", None) is not None:
            output.loss = output.loss * float("nan")

    register_module_forward_hook(hook)


if __name__ == "__main__":
    from training.teardown import exit_with
    from training.train_llm import main

    arm(Fault(sys.argv[1]), int(os.environ["RANK"]))
    exit_with(lambda: main(sys.argv[2:]))
