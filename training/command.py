"""How a command of one process ends: its exit status, and one line where the request is wrong or it was interrupted."""

import sys
from collections.abc import Callable

from training.errors import COMPLETE, INPUT_ERROR, InputError
from training.terminal import plain

INTERRUPTED = 130


def run_command(work: Callable[[], None], left: str | None = None) -> int:
    """Do the work; the process's exit status. `left` says what an interruption leaves behind, where that matters."""
    try:
        work()
    except InputError as error:
        print(plain(f"error: {error}"), file=sys.stderr)
        return INPUT_ERROR
    except KeyboardInterrupt:
        if left is not None:
            print(f"interrupted: {left}", file=sys.stderr)
        return INTERRUPTED
    return COMPLETE
