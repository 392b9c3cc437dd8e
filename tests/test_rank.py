"""One rank: where it stands, how its program is run, and how its end is judged."""

import json
import os
import socket
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from cluster.allocation import Allocation, Host
from cluster.machine import is_this_host, signal_name, visible_gpus
from cluster.rank import identity, mismatch
from cluster.records import read_records
from cluster.watch import PROGRAM_MAIN, Ending, judge, observed_command
from conftest import ROOT
from one_rank import AS_MPICH, run_rank
from waiting import is_gone, wait_until

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
        (1, 4, 1, GPUS, "should be on n1 by the plan"),
        (3, 4, 0, GPUS, "has local rank 0, the plan wants 1"),
        (3, 4, 1, ["0"], "sees 1 GPU, the plan gives it GPU 1 of 2: ask Slurm with --gpus-per-node"),
        (3, 4, 1, [], "sees 0 GPUs"),
    ],
)
def test_every_difference_from_the_plan_is_said(
    rank: int, size: int, local_rank: int, visible: list[str], message: str
) -> None:
    problem = mismatch(TWO_BY_TWO, rank, size, local_rank, visible, on_n2)

    assert problem is not None
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


MAIN = str(PROGRAM_MAIN)


@pytest.mark.parametrize(
    ("program", "command"),
    [
        (["/venv/bin/python", "s.py", "-u"], ["/venv/bin/python", MAIN, "7", "stacks", "s.py", "-u"]),
        (["python3", "-m", "mod", "-x"], ["python3", MAIN, "7", "stacks", "-m", "mod", "-x"]),
        (["python3.12", "-u", "-O", "s.py"], ["python3.12", "-u", "-O", MAIN, "7", "stacks", "s.py"]),
        (
            ["python", "-W", "error", "-X", "dev", "-c", "1"],
            ["python", "-W", "error", "-X", "dev", MAIN, "7", "stacks", "-c", "1"],
        ),
        (["python", "-"], None),
        (["python"], None),
        (["./a.out", "s.py"], None),
        (["python2", "s.py"], None),
    ],
)
def test_a_python_program_runs_in_its_own_interpreter_with_its_flags(
    program: list[str], command: list[str] | None
) -> None:
    assert observed_command(program, 7, "stacks") == command


SAID_COMPLETE = {"outcome": "complete", "detail": ""}
SAID_EXCEPTION = {
    "outcome": "exception",
    "detail": "ValueError: boom",
    "error": "builtins.ValueError",
    "errno": None,
    "time_ns": 5,
}
RAISED = Ending("exception", 1, "ValueError: boom", "builtins.ValueError", time_ns=5)


@pytest.mark.parametrize(
    ("said", "code", "is_python", "end"),
    [
        (SAID_COMPLETE, 0, True, Ending("complete", 0)),
        (None, 0, False, Ending("complete", 0)),
        (None, 0, True, Ending("incomplete", 1, "left with exit status 0 before the program had ended")),
        (SAID_EXCEPTION, 1, True, RAISED),
        (SAID_EXCEPTION, 0, True, RAISED),
        (SAID_COMPLETE, 3, True, Ending("exit", 3)),
        (SAID_COMPLETE, 75, True, Ending("saved", 75)),
        (None, 3, False, Ending("exit", 3)),
        (None, -9, True, Ending("signal", 137, "SIGKILL")),
        (SAID_COMPLETE, -15, True, Ending("signal", 143, "SIGTERM")),
        (SAID_EXCEPTION, -9, True, RAISED),
    ],
)
def test_an_end_is_judged_by_what_was_said_and_how_it_left(
    said: dict[str, object] | None, code: int, is_python: bool, end: Ending
) -> None:
    assert judge(said, code, is_python) == end


def end_of(tmp_path: Path, state: str) -> dict[str, object]:
    [end] = [record for record in read_records(tmp_path / "attempt-0001") if record["state"] == state]
    return end


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
    assert "program_main.py" not in str(end["detail"])
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
        "import atexit, os, threading\n"
        "class Native:\n"
        "    def __del__(self): os.abort()\n"
        "native = Native()\n"
        "native.itself = native\n"
        "atexit.register(print, 'atexit')\n"
        "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start()\n"
    )
    (tmp_path / "direct.py").write_text(text)

    assert subprocess.run([sys.executable, str(tmp_path / "direct.py")], capture_output=True).returncode == -6
    assert run_rank(tmp_path, script(tmp_path, text)).returncode == 0
    assert (tmp_path / "attempt-0001/logs/rank-0.log").read_text() == "thread\natexit\n"


def test_a_program_that_is_not_python_runs_as_it_is(tmp_path: Path) -> None:
    assert run_rank(tmp_path, ["sh", "-c", "echo rank $RANK of $WORLD_SIZE; exit 4"]).returncode == 4
    assert (tmp_path / "attempt-0001/logs/rank-0.log").read_text() == "rank 0 of 1\n"


@pytest.mark.parametrize(("mode", "status"), [(None, 127), (0o600, 126)], ids=["not there", "not executable"])
def test_a_program_that_this_host_cannot_run_has_the_shells_own_status(
    mode: int | None, status: int, tmp_path: Path
) -> None:
    if mode is not None:
        (tmp_path / "program").touch(mode)

    assert run_rank(tmp_path, [str(tmp_path / "program")]).returncode == status

    said = (tmp_path / "attempt-0001/logs/rank-0.log").read_text()
    assert said.startswith(f"error: cannot run {tmp_path}/program: ")


def test_workers_that_the_program_left_end_with_it(tmp_path: Path) -> None:
    text = (
        "import os, subprocess, sys\n"
        f"worker = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'worker')!r}, 'w').write(str(worker.pid))\n"
        "os.kill(os.getpid(), 9)\n"
    )

    assert run_rank(tmp_path, script(tmp_path, text)).returncode == 137

    worker = int((tmp_path / "worker").read_text())
    wait_until(lambda: is_gone(worker))


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_process_that_the_program_forked_does_not_speak_for_the_rank(tmp_path: Path, end: str) -> None:
    text = f"import os, sys\nif os.fork() == 0:\n    sys.exit(0)\nos.wait()\n{end}\n"

    assert run_rank(tmp_path, script(tmp_path, text)).returncode != 0
    assert end_of(tmp_path, "failed")["outcome"] in ("incomplete", "signal")


def test_a_forked_process_that_fails_leaves_the_rank_complete(tmp_path: Path) -> None:
    text = "import os, sys\nif os.fork() == 0:\n    raise ValueError('only the child')\nos.wait()\n"

    assert run_rank(tmp_path, script(tmp_path, text)).returncode == 0
    assert end_of(tmp_path, "complete")["outcome"] == "complete"


@pytest.mark.parametrize("flags", [["-O"], ["-u", "-W", "ignore"], ["-P"]])
def test_flags_of_the_interpreter_do_not_weaken_the_proof(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "program.py").write_text("import os; os._exit(0)")

    assert run_rank(tmp_path, [sys.executable, *flags, str(tmp_path / "program.py")]).returncode == 1
    assert end_of(tmp_path, "failed")["outcome"] == "incomplete"


def test_code_on_the_command_line_is_proved_too(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; print(__name__, sys.argv); x = [y for y in sys.argv]", "a"]

    assert run_rank(tmp_path, program).returncode == 0
    assert (tmp_path / "attempt-0001/logs/rank-0.log").read_text() == "__main__ ['-c', 'a']\n"


def test_another_environments_python_keeps_its_own_modules(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    [modules] = (tmp_path / "venv/lib").glob("python3*/site-packages")
    (modules / "only_there.py").write_text("")
    (modules / "cluster.py").write_text("mine = True\n")
    (tmp_path / "program.py").write_text("import only_there, cluster\nassert cluster.mine\n")

    done = run_rank(tmp_path, [str(tmp_path / "venv/bin/python"), str(tmp_path / "program.py")], PYTHONPATH="")

    assert done.returncode == 0, (tmp_path / "attempt-0001/logs/rank-0.log").read_text()


def test_an_exception_is_on_record_before_the_programs_threads_end(tmp_path: Path) -> None:
    text = (
        "import os, threading, time\n"
        f"records = {str(tmp_path / 'attempt-0001/ranks.jsonl')!r}\n"
        "def wait():\n"
        "    while 'failed' not in open(records).read(): time.sleep(0.01)\n"
        "threading.Thread(target=wait).start()\n"
        "raise ValueError('boom')\n"
    )

    assert run_rank(tmp_path, script(tmp_path, text)).returncode == 1
    assert end_of(tmp_path, "failed")["outcome"] == "exception"


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.stdout.close()",
        "import sys; sys.stdout = None",
        "import os; os.environ.clear()",
        "import os; os.chdir('/')",
        "import sys; sys.exit(256)",
        "import sys; sys.exit(None)",
        "print('é' * 10**6)",
    ],
)
def test_odd_but_complete_programs_are_complete(tmp_path: Path, text: str) -> None:
    assert run_rank(tmp_path, script(tmp_path, text)).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "raise RuntimeError('é' * 20000)",
        "raise RuntimeError('😀\\n\"' * 20000)",
        "import os; os.environ.clear(); raise RuntimeError",
        "import sys; sys.stderr.close(); raise RuntimeError",
        "class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad",
        "raise KeyboardInterrupt",
    ],
)
def test_odd_exceptions_are_recorded_as_exceptions(tmp_path: Path, text: str) -> None:
    assert run_rank(tmp_path, script(tmp_path, text)).returncode == 1
    assert end_of(tmp_path, "failed")["outcome"] == "exception"


def test_a_launcher_that_cannot_be_reached_is_named_with_the_option_that_helps(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    plan = {**TWO_BY_TWO.to_json(), "launcher": ["127.0.0.1", port], "token": "x"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    reaches = "import functools, sys; from cluster import rank; "
    reaches += "rank.connect = functools.partial(rank.connect, seconds=0); sys.exit(rank.main(sys.argv[1:]))"

    done = subprocess.run(
        [sys.executable, "-c", reaches, str(tmp_path / "plan.json"), "--", "true"],
        env={**os.environ, **AS_MPICH},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert done.returncode == 70
    assert f"cannot reach the launcher at 127.0.0.1:{port}" in done.stderr
    assert done.stderr.endswith("or name their common network with --nic\n")


def test_a_rank_whose_log_cannot_be_written_says_so_on_record(tmp_path: Path) -> None:
    (tmp_path / "attempt-0001/logs/rank-0.log").mkdir(parents=True)

    assert run_rank(tmp_path, ["true"]).returncode == 1

    assert "rank-0.log" in str(end_of(tmp_path, "failed")["detail"])


def test_an_error_file_that_the_program_has_written_itself_stays(tmp_path: Path) -> None:
    text = "import os\nopen(os.environ['TORCHELASTIC_ERROR_FILE'], 'w').write('its own')\nraise ValueError\n"

    assert run_rank(tmp_path, script(tmp_path, text)).returncode == 1

    assert (tmp_path / "attempt-0001/errors/rank-0.json").read_text() == "its own"


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (39, "SIG39")])
def test_a_signal_is_called_by_its_name_and_a_real_time_one_by_its_number(number: int, name: str) -> None:
    assert signal_name(number) == name


def test_a_plan_that_cannot_be_read_says_what_all_nodes_need(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.rank", str(tmp_path / "plan.json"), "--", "true"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert done.returncode == 70
    assert "must lie on a file system that all nodes share" in done.stderr
