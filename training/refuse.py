"""Ending before anything was trained: said once, by the rank that knows, with the exit status that goes with it."""

import sys
import time

from training.errors import INPUT_ERROR, NODE_UNFIT, InputError, NodeError
from training.ranks import RankInfo
from training.terminal import plain


def refuse(error: InputError | NodeError, ranks: RankInfo) -> int:
    """Say once what is wrong with the request, or with a host."""
    if ranks.rank == (error.speaker if isinstance(error, NodeError) else 0):
        print(plain(f"error: {error}"), file=sys.stderr, flush=True)
    else:
        # mpirun ends all ranks when the first one fails, and the one that speaks must have spoken by then.
        time.sleep(2.0)
    return NODE_UNFIT if isinstance(error, NodeError) else INPUT_ERROR
