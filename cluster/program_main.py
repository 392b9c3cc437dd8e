"""Runs inside the program's own interpreter: the program, then one message on how it ended.

    python [flags] program_main.py FD STACKS  script.py …  |  -m module …  |  -c code …

The message goes to the descriptor FD, and on `STACK_SIGNAL` the stacks of all threads to the file STACKS.

It is started by its path, with any Python 3, and imports nothing but the standard library: the program finds the
modules, the arguments and the ``__main__`` that it would find without us.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from types import ModuleType, TracebackType
from typing import Any

LONGEST_DETAIL = 12_000
"""Characters of a traceback that are kept, from its end."""
STACK_SIGNAL = signal.SIGRTMIN + 5


def main() -> None:
    descriptor, stacks, program = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.set_inheritable(descriptor, False)
    show_stacks_in(stacks)
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    watched = os.getpid()
    status = 0
    said: dict[str, Any] = {"outcome": "complete", "detail": ""}
    try:
        run(program)
    except SystemExit as leaving:
        status = exit_status(leaving.code)
    except BaseException as error:
        error.__traceback__ = program_part(error.__traceback__)
        detail = "".join(traceback.format_exception(type(error), error, error.__traceback__))[-LONGEST_DETAIL:]
        print_to_stderr(detail)
        status, said = 1, {"outcome": "exception", "detail": detail, **kind_of(error)}
    if os.getpid() == watched:  # not in a process that the program forked
        tell(descriptor, said)  # now, not after threads and atexit: the other ranks' errors follow in milliseconds
        if said["detail"]:
            write_error_file(error_file, said["detail"])
    leave(status)


def run(program: list[str]) -> None:
    """Run it the way ``python script.py``, ``python -m module`` and ``python -c code`` do."""
    if program[0] == "-m":
        sys.argv[:] = program[1:]
        look_for_modules_in(os.getcwd())
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    elif program[0] == "-c":
        sys.argv[:] = ["-c", *program[2:]]
        look_for_modules_in("")
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(program[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv[:] = program
        script = os.path.abspath(program[0])
        look_for_modules_in(os.path.dirname(script))
        runpy.run_path(script, run_name="__main__")


def look_for_modules_in(folder: str) -> None:
    """Put the program's folder first on the path, where this file's stands (not so with Python's -P and -I)."""
    if os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
        sys.path[0] = folder


def show_stacks_in(path: str) -> None:
    """Have a handler in C write the stacks there, so that it works also while something holds the interpreter."""
    with suppress(OSError):
        faulthandler.register(STACK_SIGNAL, open(path, "ab", buffering=0))  # noqa: SIM115 (open as long as we live)


def kind_of(error: BaseException) -> dict[str, Any]:
    """The exception's class by its full name, and its errno where it is an operating system's error."""
    kind, number = type(error), getattr(error, "errno", None)
    return {"error": f"{kind.__module__}.{kind.__qualname__}", "errno": number if isinstance(number, int) else None}


def exit_status(code: object) -> int:
    """The status that Python would exit with for ``sys.exit(code)``."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print_to_stderr(f"{code}\n")
    return 1


def leave(status: int) -> None:
    """End as Python does up to the point where it would tear itself down: threads, atexit, streams.

    The tear-down is left out because native threads of torch sometimes crash in it (``terminate called without an
    active exception``), long after the program has done its work; it frees only what the kernel frees anyway.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the program may have closed it
            stream.flush()
    os._exit(status)


def tell(descriptor: int, said: dict[str, Any]) -> None:
    """One message to the watcher, with the time (nanoseconds since 1970), which reads it while we write."""
    message = json.dumps({**said, "time_ns": time.time_ns()}).encode()
    while message:
        message = message[os.write(descriptor, message) :]


def program_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this file and of runpy, which say nothing to the user."""
    inner = trace
    while inner and inner.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>"):
        inner = inner.tb_next
    return inner or trace


def print_to_stderr(text: str) -> None:
    with suppress(Exception):  # the program may have closed it
        sys.stderr.write(text)


def write_error_file(path: str | None, detail: str) -> None:
    """TORCHELASTIC_ERROR_FILE in the form of torch's `record`, unless the program has written it itself."""
    if not path or os.path.exists(path):
        return
    last = detail.rstrip().rpartition("\n")[2]
    extra = {"py_callstack": detail, "timestamp": str(int(time.time()))}
    with suppress(OSError), open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        json.dump({"message": {"message": last, "extraInfo": extra}}, file)


if __name__ == "__main__":
    main()
