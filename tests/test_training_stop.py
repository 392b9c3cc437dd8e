"""Requests to save and stop: SIGUSR1, and Ctrl-C at a terminal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_training_train_llm import TINY, environment

from training.stop import takes_interrupts

SIGNALLED = """
import os, signal, sys
from training.stop import StopRequest
stop = StopRequest()
stop.also_on_interrupt(says=True)
for name in sys.argv[1:]:
    os.kill(os.getpid(), getattr(signal, name))
print(stop.requested, stop.by)
"""


def signalled(*names: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", SIGNALLED, *names], capture_output=True, text=True, timeout=60)


def test_usr1_asks_once_however_often_it_comes():
    assert signalled("SIGUSR1", "SIGUSR1", "SIGUSR1").stdout == "True SIGUSR1\n"


def test_the_first_interrupt_asks_and_says_so():
    done = signalled("SIGINT")
    assert done.stdout == "True Ctrl-C\n"
    assert done.stderr == "\nsaving and stopping after this step; Ctrl-C again stops at once\n"


def test_the_second_interrupt_stops_at_once():
    done = signalled("SIGINT", "SIGINT")
    assert done.returncode == -signal.SIGINT
    assert done.stdout == ""
    assert done.stderr.endswith("KeyboardInterrupt\n")


def test_an_interrupt_after_a_warning_is_the_first_one():
    assert signalled("SIGUSR1", "SIGINT").stdout == "True Ctrl-C\n"


@pytest.mark.parametrize(
    ("launcher", "own", "takes"),
    [
        ("single", False, True),
        ("torchrun's variables", False, True),
        ("torchrun's variables", True, False),
        ("Open MPI", False, False),
        ("srun", False, False),
    ],
)
def test_ctrl_c_is_a_persons_wish_only_where_no_launcher_answers_it(launcher: str, own: bool, takes: bool):
    assert takes_interrupts(launcher, own) == takes


def test_ctrl_c_saves_and_stops_and_the_same_command_goes_on(tmp_path: Path):
    command = [sys.executable, "-m", "training.train_llm", "--output-dir", str(tmp_path), "-e", "run", *TINY]
    command += ["--max-steps", "100000", "--ckpt-freq", "0", "--eval-freq", "0", "--num-workers", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    # A terminal sends it to the whole group of processes.
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 75, rest
    assert "saving and stopping after this step; Ctrl-C again stops at once" in rest
    assert "on Ctrl-C; the same command trains on from there" in rest
    assert "Traceback" not in rest
