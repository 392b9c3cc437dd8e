"""How a command ends: its exit status, and one line where the request is wrong, a host unfit, or it was interrupted."""

import os
import socket
import sys
import time
from collections.abc import Callable

from training.errors import COMPLETE, INPUT_ERROR, INTERRUPTED, NODE_UNFIT, AgreedError, InputError, NodeError
from training.ranks import RankInfo, check_rendezvous
from training.terminal import plain, take_any_letter


def run_command(work: Callable[[], None], left: str | None = None) -> int:
    """Do the work of one process alone; its exit status. `left` says what an interruption leaves behind, where that
    matters."""
    take_any_letter()
    try:
        work()
    except InputError as error:
        say(f"error: {error}")
        return INPUT_ERROR
    except KeyboardInterrupt:
        if left is not None:
            say(f"interrupted: {left}")
        return INTERRUPTED
    return COMPLETE


def run_on_ranks(work: Callable[[RankInfo], None]) -> int:
    """Do the work as one of the ranks that a launcher started, or alone; the process's exit status."""
    ranks = RankInfo()
    take_any_letter()
    try:
        ranks = RankInfo.from_env(os.environ)
        check_rendezvous(ranks, os.environ)
        work(ranks)
    except (InputError, NodeError) as error:
        return refuse(error, ranks)
    return COMPLETE


def refuse(error: InputError | NodeError, ranks: RankInfo) -> int:
    """Say, by the rank that knows, what is wrong with the request or with a host; the exit status.

    What the ranks have not agreed on may be wrong on one host alone, so another rank than the first says it too, with
    its place. By then mpirun has ended it where the first one refused the same.
    """
    if ranks.rank == (error.speaker if isinstance(error, NodeError) else 0):
        say(f"error: {error}")
    else:
        # mpirun ends all ranks when the first one fails, and the one that speaks must have spoken by then.
        time.sleep(2.0)
        if not isinstance(error, NodeError | AgreedError):
            say(f"error: rank {ranks.rank} on {socket.gethostname()}: {error}")
    return NODE_UNFIT if isinstance(error, NodeError) else INPUT_ERROR


def say(text: str) -> None:
    """A line beside the result."""
    print(plain(text), file=sys.stderr, flush=True)
