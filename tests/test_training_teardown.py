"""Leaving without the interpreter's tear-down."""

import subprocess
import sys

import pytest

CRASHES_IN_TEAR_DOWN = """
import atexit, os, threading
from training.teardown import exit_with

class Native:
    def __del__(self): os.abort()

def run():
    global native
    native = Native()
    native.itself = native
    atexit.register(print, "atexit")
    threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
    return {status}

{call}
"""


def python(call: str, status: int) -> "subprocess.CompletedProcess[str]":
    program = CRASHES_IN_TEAR_DOWN.format(call=call, status=status)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("status", [0, 75])
def test_the_status_stands_and_threads_and_exit_handlers_have_run(status: int) -> None:
    done = python("exit_with(run)", status)

    assert (done.returncode, done.stdout) == (status, "thread\natexit\n")


def test_without_it_the_tear_down_would_have_crashed() -> None:
    assert python("run()", 0).returncode == -6


def test_what_is_kept_is_not_destroyed_when_its_function_returns() -> None:
    program = CRASHES_IN_TEAR_DOWN.replace("global native", "from training.teardown import keep_until_the_end")
    program = program.replace("native.itself = native", "{keep}").replace(
        "def __del__(self): os.abort()", "__del__ = lambda self: os.abort()"
    )
    kept, lost = (
        subprocess.run([sys.executable, "-c", program.format(keep=keep, status=0, call="exit_with(run)")])
        for keep in ("keep_until_the_end(native)", "")
    )

    assert (kept.returncode, lost.returncode) == (0, -6)


def test_an_exception_ends_the_process_as_any_other() -> None:
    done = python("exit_with(lambda: 1 / 0)", 0)

    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_an_exception_is_not_followed_by_a_crash_in_the_tear_down() -> None:
    done = python("exit_with(lambda: run() / 0)", 1)

    assert (done.returncode, done.stdout) == (1, "thread\natexit\n")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_an_interrupt_ends_the_process_at_once_and_waits_for_no_thread() -> None:
    program = (
        "import threading; from training.teardown import exit_with\n"
        "def run():\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    print('said')\n"
        "    raise KeyboardInterrupt\n"
        "exit_with(run)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (130, "said\n")
    assert done.stderr == "stopped at once by Ctrl-C; what was not saved yet is lost\n"
