"""Leaving a process that has used DDP, without the interpreter's tear-down.

DDP keeps its process group's threads running after `destroy_process_group` (torch 2.13, gloo). Now and then one of
them asks for the interpreter while that is being taken apart, and the process dies with ``terminate called without an
active exception``, long after its work was done and saved.
"""

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from training.errors import INTERRUPTED

_KEPT: list[Any] = []


def keep_until_the_end(value: Any) -> None:
    """Never destroy this object: it holds a process group, or torch holds it, also after `destroy_process_group`.

    DDP's destructor waits for gloo's thread, and holds the interpreter. That thread may need the interpreter to let
    go of the tensors of the last broadcast: then both wait for ever (torch 2.13, seen in 2 of 5 runs of two ranks on
    busy cores, at the return of the function whose variable the model was).
    """
    _KEPT.append(value)


def exit_with(run: Callable[[], int]) -> NoReturn:
    """Exit with the status that `run` returns, once threads and exit handlers have ended.

    The handler below is registered before anything else is imported, so it runs after all others. Where `run` raises,
    the traceback is printed as by any other program, and the status is 1. KeyboardInterrupt ends the process at once,
    whatever its threads are doing.
    """
    statuses: list[int] = []

    def leave() -> None:
        if statuses:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(statuses[0])

    atexit.register(leave)
    try:
        statuses.append(run())
    except KeyboardInterrupt:
        print("stopped at once by Ctrl-C; what was not saved yet is lost", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    except Exception:
        statuses.append(1)
        raise
    sys.exit(statuses[0])
