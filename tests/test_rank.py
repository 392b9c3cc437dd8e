"""One rank: where it stands, how its program is run, and how its end is judged."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.allocation import Allocation, Host
from cluster.machine import is_this_host, visible_gpus
from cluster.rank import as_python, identity, judge, mismatch
from conftest import ROOT

TWO_BY_TWO = Allocation("slurm", (Host("n1", 2, 2, 4), Host("n2", 2, 2, 4)))
GPUS = ["0", "1"]


def on_n2(name: str) -> bool:
    return name == "n2"


@pytest.mark.parametrize(
    "environ",
    [
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMI_RANK": "9"},
        {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"},
    ],
    ids=["Open MPI", "MPICH"],
)
def test_identity_comes_from_the_mpi_that_started_us(environ: dict[str, str]) -> None:
    assert identity(environ) == (3, 4, 1)


def test_a_rank_that_stands_where_the_plan_says_is_let_through() -> None:
    assert mismatch(TWO_BY_TWO, rank=3, size=4, local_rank=1, visible=GPUS, is_here=on_n2) is None


@pytest.mark.parametrize(
    ("rank", "size", "local_rank", "visible", "message"),
    [
        (3, 2, 1, GPUS, "is in a world of 2, the plan wants 4 ranks"),
        (1, 4, 1, GPUS, "the plan wants it on n1"),
        (3, 4, 0, GPUS, "has local rank 0, the plan wants 1"),
        (3, 4, 1, ["0"], "sees 1 GPU, the plan gives it GPU 1 of 2: ask Slurm with --gpus-per-node"),
        (3, 4, 1, None, "sees 0 GPUs"),
    ],
)
def test_every_difference_from_the_plan_names_the_rank(
    rank: int, size: int, local_rank: int, visible: list[str] | None, message: str
) -> None:
    problem = mismatch(TWO_BY_TWO, rank, size, local_rank, visible, on_n2)

    assert problem is not None
    assert problem.startswith(f"rank {rank} ")
    assert message in problem


def test_a_host_is_known_by_name_and_by_address() -> None:
    assert is_this_host("localhost")
    assert is_this_host("127.0.0.1")
    assert not is_this_host("192.0.2.1")
    assert not is_this_host("no-such-host.invalid")


def test_slurms_name_for_the_node_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu001")

    assert is_this_host("gpu001")


@pytest.mark.parametrize(
    ("value", "gpus"), [("0,1", ["0", "1"]), ("GPU-a", ["GPU-a"]), ("", []), ("-1", []), ("NoDevFiles", [])]
)
def test_visible_gpus_are_those_of_cuda_visible_devices(value: str, gpus: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": value}) == gpus


@pytest.mark.parametrize(
    ("program", "script"),
    [
        ([sys.executable, "s.py", "--lr", "1"], ["s.py", "--lr", "1"]),
        (["python", "-u", "-m", "training.train_llm"], ["-m", "training.train_llm"]),
        ([sys.executable, "-O", "s.py"], None),
        ([sys.executable, "-c", "pass"], None),
        (["/opt/other/bin/python3", "s.py"], None),
        (["./a.out"], None),
    ],
)
def test_this_pythons_scripts_and_modules_run_in_process_all_else_as_it_is(
    program: list[str], script: list[str] | None
) -> None:
    assert as_python(program) == script


SAID_COMPLETE = {"outcome": "complete", "detail": ""}
SAID_EXCEPTION = {"outcome": "exception", "detail": "ValueError: boom"}


@pytest.mark.parametrize(
    ("said", "code", "is_python", "end"),
    [
        (SAID_COMPLETE, 0, True, ("complete", 0, "")),
        (None, 0, False, ("complete", 0, "")),
        (None, 0, True, ("incomplete", 1, "left with exit status 0 before the program had ended")),
        (SAID_EXCEPTION, 1, True, ("exception", 1, "ValueError: boom")),
        (SAID_EXCEPTION, 0, True, ("exception", 1, "ValueError: boom")),
        (SAID_COMPLETE, 3, True, ("exit", 3, "")),
        (SAID_COMPLETE, 75, True, ("saved", 75, "")),
        (None, 3, False, ("exit", 3, "")),
        (None, -9, True, ("signal", 137, "SIGKILL")),
        (SAID_COMPLETE, -15, True, ("signal", 143, "SIGTERM")),
    ],
)
def test_an_end_is_judged_by_what_was_said_and_how_it_left(
    said: dict[str, str] | None, code: int, is_python: bool, end: tuple[str, int, str]
) -> None:
    assert judge(said, code, is_python) == end


def run_rank(tmp_path: Path, program: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """A world of one rank, without any mpirun."""
    attempt = tmp_path / "attempt-0001"
    for directory in ("ranks", "errors", "logs"):
        (attempt / directory).mkdir(parents=True)
    plan = {
        **Allocation("local", (Host("localhost", 1, 0, 2),)).to_json(),
        "attempt": 1,
        "run_dir": str(tmp_path),
        "attempt_dir": str(attempt),
        "log_dir": str(attempt / "logs"),
        "master_addr": "127.0.0.1",
        "master_port": 20000,
    }
    (attempt / "plan.json").write_text(json.dumps(plan))
    return subprocess.run(
        [sys.executable, "-m", "cluster.rank", str(attempt / "plan.json"), "--", *program],
        env={**os.environ, "PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", **environ},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def end_of(tmp_path: Path, state: str) -> dict[str, object]:
    return json.loads((tmp_path / f"attempt-0001/ranks/rank-0.{state}.json").read_text())


def script(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "program.py").write_text(text)
    return [sys.executable, str(tmp_path / "program.py")]


def test_a_program_sees_the_same_as_when_python_runs_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("answer = 42\n")
    program = script(
        tmp_path,
        "import sys, beside\nprint(__name__, sys.argv[1:], beside.answer)\nprint('to stderr', file=sys.stderr)\n",
    )

    done = run_rank(tmp_path, [*program, "--lr", "1"])

    assert done.returncode == 0
    assert (tmp_path / "attempt-0001/logs/rank-0.log").read_text() == "__main__ ['--lr', '1'] 42\nto stderr\n"
    assert end_of(tmp_path, "complete")["outcome"] == "complete"


def test_an_exception_leaves_traceback_record_and_torchelastics_error_file(tmp_path: Path) -> None:
    done = run_rank(tmp_path, script(tmp_path, "def f():\n    raise ValueError('boom')\nf()\n"))

    assert done.returncode == 1
    end = end_of(tmp_path, "failed")
    assert end["outcome"] == "exception"
    assert str(end["detail"]).startswith("Traceback (most recent call last):\n  File")
    assert "cluster/rank.py" not in str(end["detail"])
    assert str(end["detail"]).endswith("ValueError: boom\n")
    error = json.loads((tmp_path / "attempt-0001/errors/rank-0.json").read_text())
    assert error["message"]["message"] == "ValueError: boom"


def test_a_very_long_traceback_is_kept_from_its_end(tmp_path: Path) -> None:
    done = run_rank(tmp_path, script(tmp_path, "raise ValueError('x' * 10**6 + 'the end')\n"))

    assert done.returncode == 1
    assert str(end_of(tmp_path, "failed")["detail"]).endswith("xthe end\n")


@pytest.mark.parametrize(
    ("text", "status", "outcome"),
    [
        ("import os; os._exit(0)", 1, "incomplete"),
        ("import sys; sys.exit(3)", 3, "exit"),
        ("import sys; sys.exit('no')", 1, "exit"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, "signal"),
        ("import os; os.abort()", 134, "signal"),
        ("import atexit, os; atexit.register(os.abort)", 134, "signal"),
        ("import sys; sys.exit(0)", 0, "complete"),
    ],
)
def test_every_way_to_leave_is_recorded(tmp_path: Path, text: str, status: int, outcome: str) -> None:
    done = run_rank(tmp_path, script(tmp_path, text))

    state = "complete" if outcome == "complete" else "failed"
    assert (done.returncode, end_of(tmp_path, state)["outcome"]) == (status, outcome)


def test_a_saved_rank_leaves_with_zero_so_that_mpirun_lets_the_others_save(tmp_path: Path) -> None:
    assert run_rank(tmp_path, script(tmp_path, "import sys; sys.exit(75)")).returncode == 0
    assert end_of(tmp_path, "saved")["status"] == 75


def test_atexit_and_threads_finish_and_a_crash_in_the_interpreters_tear_down_cannot_spoil_the_end(
    tmp_path: Path,
) -> None:
    text = (
        "import atexit, os, threading, time\n"
        "class Native:\n"
        "    def __del__(self): os.abort()\n"
        "native = Native()\n"
        "native.itself = native\n"
        "atexit.register(print, 'atexit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
    )
    (tmp_path / "direct.py").write_text(text)

    assert subprocess.run([sys.executable, str(tmp_path / "direct.py")], capture_output=True).returncode == -6
    assert run_rank(tmp_path, script(tmp_path, text)).returncode == 0
    assert (tmp_path / "attempt-0001/logs/rank-0.log").read_text() == "thread\natexit\n"


def test_a_program_that_is_not_python_runs_as_it_is(tmp_path: Path) -> None:
    assert run_rank(tmp_path, ["sh", "-c", "echo rank $RANK of $WORLD_SIZE; exit 4"]).returncode == 4
    assert (tmp_path / "attempt-0001/logs/rank-0.log").read_text() == "rank 0 of 1\n"


def test_a_worker_that_outlives_the_program_does_not_delay_the_record(tmp_path: Path) -> None:
    text = (
        "import os, time\n"
        "worker = os.fork()\n"
        "if worker == 0:\n"
        "    os.close(1), os.close(2), time.sleep(600)\n"
        "open('worker', 'w').write(str(worker))\n"
        "os.kill(os.getpid(), 9)\n"
    ).replace("'worker', 'w'", f"{str(tmp_path / 'worker')!r}, 'w'")

    done = run_rank(tmp_path, script(tmp_path, text))

    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)  # it was still there when the rank had ended
    assert done.returncode == 137


def test_usr1_reaches_the_program_once(tmp_path: Path) -> None:
    text = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('usr1', flush=True))\n"
        "os.kill(os.getppid(), signal.SIGUSR1)\n"
        "time.sleep(0.5)\n"
    )

    assert run_rank(tmp_path, script(tmp_path, text)).returncode == 0
    assert (tmp_path / "attempt-0001/logs/rank-0.log").read_text() == "usr1\n"


def test_a_plan_that_cannot_be_read_says_what_all_nodes_need(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.rank", str(tmp_path / "plan.json"), "--", "true"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert done.returncode == 70
    assert "must lie on a file system that all nodes share" in done.stderr
