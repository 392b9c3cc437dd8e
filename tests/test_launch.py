"""The launcher on this machine, with every real mpirun: what ranks get, and the verdict on what they do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.allocation import Allocation, Host
from cluster.attempt import remember
from cluster.events import last_event
from cluster.launch import hosts_left
from cluster.records import read_records
from cluster.rundir import Attempt
from cluster.signals import Requests
from cluster.terminal import say
from cluster.verdict import Verdict
from conftest import ROOT, Mpi
from waiting import wait_until

PRINT_ENVIRONMENT = """
import json, os, sys
names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "GIVEN", "INHERITED", "HF_HOME", "OMP_NUM_THREADS"]
names += ["MASTER_ADDR", "CLUSTER_RUN_DIR", "TORCHELASTIC_ERROR_FILE"]
seen = {name: os.environ.get(name) for name in names}
json.dump({**seen, "cwd": os.getcwd(), "python": sys.executable}, sys.stdout)
"""
SAVES_ON_USR1 = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(600)
"""
FAULT = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
if rank == int(os.environ.get("GUILTY", "1")):
    {fault}
time.sleep({patience})
"""
MEETS = """
import os, socket, time
from pathlib import Path
socket.setdefaulttimeout(60)
rank, token = os.environ["RANK"], os.environ["CLUSTER_STORE_TOKEN"].encode()
place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == "0":
    with socket.create_server(place) as server:
        Path(os.environ["CLUSTER_RUN_DIR"], "listens").touch()
        met, _ = server.accept()
        assert met.recv(64) == token, "met a rank of another launch"
        met.sendall(token)
else:
    while not Path("all-listen").exists():
        time.sleep(0.1)
    with socket.create_connection(place) as met:
        met.sendall(token)
        assert met.recv(64) == token, "met a rank of another launch"
"""


def launch_command(mpi: Mpi, *options: str) -> list[str]:
    return [sys.executable, "-m", "cluster.launch", "--cluster", "local", "--mpirun", str(mpi.mpirun), *options]


def launch(mpi: Mpi, cwd: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Two simulated nodes of two ranks run ``program.py``."""
    return subprocess.run(
        launch_command(mpi, "--nodes", "2", "--ranks-per-node", "2", *options, "--", "python", "program.py"),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
    )


def start(mpi: Mpi, cwd: Path, *options: str) -> "subprocess.Popen[str]":
    """The launcher of ``program.py``, left running."""
    return subprocess.Popen(
        launch_command(mpi, *options, "--", "python", "program.py"),
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def records_of(cwd: Path, state: str) -> list[dict[str, object]]:
    """What the ranks of the first attempt of ``program.py`` said of themselves."""
    records = read_records(cwd / "outputs/program/attempt-0001")
    return [record for record in records if record["state"] == state]


def program(cwd: Path, text: str) -> None:
    (cwd / "program.py").write_text(text)


def test_ranks_get_what_the_options_say(mpi: Mpi, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    program(tmp_path / "work", PRINT_ENVIRONMENT)

    done = launch(
        mpi,
        tmp_path,
        *["-x", "GIVEN=a b=c", "-x", "INHERITED", "--wdir", str(tmp_path / "work")],
        *["--output-filename", str(tmp_path / "logs")],
        *["--bind-to", "none", "--experiment-name", "e", "--output-dir", str(tmp_path / "out")],
        INHERITED="from outside",
        HF_HOME="/data/hf",
        OMP_NUM_THREADS="3",
    )

    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads((tmp_path / "logs/attempt-0001/rank-3.log").read_text())
    assert seen == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "GIVEN": "a b=c",
        "INHERITED": "from outside",
        "HF_HOME": "/data/hf",
        "OMP_NUM_THREADS": "3",
        "MASTER_ADDR": "127.0.0.1",
        "CLUSTER_RUN_DIR": str(tmp_path / "out/e"),
        "TORCHELASTIC_ERROR_FILE": str(tmp_path / "out/e/attempt-0001/errors/rank-3.json"),
        "cwd": str(tmp_path / "work"),
        "python": sys.executable,
    }
    assert "GIVEN=a b=c" not in (tmp_path / "out/e/attempt-0001/mpirun.txt").read_text()


@pytest.mark.parametrize(
    ("fault", "status", "last_lines"),
    [
        ("raise ValueError('boom')", 1, ["    raise ValueError('boom')", "ValueError: boom"]),
        ("sys.exit(3)", 3, ["left with exit status 3"]),
        ("os._exit(0)", 1, ["left with exit status 0 before the program had ended"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, ["was killed by SIGKILL"]),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, ["was killed by SIGSEGV"]),
    ],
    ids=["exception", "exit", "early exit 0", "SIGKILL", "SIGSEGV"],
)
def test_the_guilty_rank_ends_the_attempt_and_the_log(
    mpi: Mpi, tmp_path: Path, fault: str, status: int, last_lines: list[str]
) -> None:
    program(tmp_path, FAULT.format(fault=fault, patience=600))

    done = launch(mpi, tmp_path)

    assert done.returncode == status
    verdict = done.stdout[done.stdout.index("── ") :].splitlines()
    assert verdict[0].startswith(f"── rank crash · exit status {status} · attempt 1 · ")
    assert verdict[2].startswith(f"rank 1 on {os.uname().nodename} ")
    assert all(line in done.stdout for line in last_lines)
    assert last_lines[-1] in "\n".join(verdict[2:])
    [attempt] = json.loads((tmp_path / "outputs/program/run.json").read_text())["attempts"]
    assert (attempt["verdict"]["rank"], attempt["verdict"]["status"]) == (1, status)


def test_nothing_is_left_behind_when_the_launcher_is_killed(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, FAULT.format(fault="pass", patience=600))
    launcher = start(mpi, tmp_path, "--ranks-per-node", "2")
    wait_until(lambda: len(records_of(tmp_path, "started")) == 2)

    launcher.kill()
    launcher.wait()

    wait_until(lambda: not processes_that_mention(str(tmp_path)))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_launcher_stops_all_ranks_and_says_so(
    mpi: Mpi, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    program(tmp_path, FAULT.format(fault="pass", patience=600))
    launcher = start(mpi, tmp_path, "--ranks-per-node", "2")
    wait_until(lambda: len(records_of(tmp_path, "started")) == 2)

    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=60)

    assert launcher.returncode == status
    assert f"── cancelled · exit status {status}" in out
    wait_until(lambda: not processes_that_mention(str(tmp_path)))


def test_usr1_reaches_every_rank_and_a_saved_run_ends_with_75(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, SAVES_ON_USR1)
    launcher = start(mpi, tmp_path, "--nodes", "2", "--ranks-per-node", "2")
    logs = tmp_path / "outputs/program/attempt-0001/logs"
    wait_until(lambda: [log.read_text() for log in logs.glob("*.log")] == ["ready\n"] * 4)

    launcher.send_signal(signal.SIGUSR1)
    out, _ = launcher.communicate(timeout=60)

    assert launcher.returncode == 75
    assert "── saved for requeue · exit status 75" in out
    assert "next: submit the same command again, it goes on" in out


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_one_ctrl_c_saves_and_stops_and_two_stop_now(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, SAVES_ON_USR1)
    logs = tmp_path / "outputs/program/attempt-0001/logs"
    once = start(mpi, tmp_path, "--ranks-per-node", "2")
    wait_until(lambda: [log.read_text() for log in logs.glob("*.log")] == ["ready\n"] * 2)
    once.send_signal(signal.SIGINT)
    said, _ = once.communicate(timeout=60)

    program(tmp_path, FAULT.format(fault="pass", patience=600))
    twice = start(mpi, tmp_path, "--ranks-per-node", "2")
    wait_until(lambda: len(read_records(tmp_path / "outputs/program/attempt-0002")) == 2)
    twice.send_signal(signal.SIGINT)
    assert twice.stdout is not None
    wait_until(lambda: "once more stops them now" in twice.stdout.readline())  # type: ignore[union-attr]
    twice.send_signal(signal.SIGINT)
    rest, _ = twice.communicate(timeout=60)

    assert (once.returncode, twice.returncode) == (75, 130), said + rest
    assert "as it was asked to (Ctrl-C)" in said


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_usr1_reaches_every_rank_also_where_mpirun_does_not_pass_it_on(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, SAVES_ON_USR1)
    deaf = tmp_path / "mpirun"
    deaf.write_text(f"#!/bin/bash\ntrap '' USR1\n{mpi.mpirun} \"$@\" &\nwait $!\n")
    deaf.chmod(0o755)
    launcher = start(Mpi("deaf", deaf, mpi.dialect), tmp_path, "--ranks-per-node", "2")
    logs = tmp_path / "outputs/program/attempt-0001/logs"
    wait_until(lambda: [log.read_text() for log in logs.glob("*.log")] == ["ready\n"] * 2)

    launcher.send_signal(signal.SIGUSR1)
    out, _ = launcher.communicate(timeout=60)

    assert launcher.returncode == 75, out


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_rank_of_another_world_is_named_before_the_program_starts(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, "print('started')\n")
    smaller = tmp_path / "mpirun"
    smaller.write_text(f'#!/bin/bash\nexec {mpi.mpirun} "${{@/#4/3}}"\n')
    smaller.chmod(0o755)

    done = launch(Mpi("smaller world", smaller, mpi.dialect), tmp_path)

    assert done.returncode == 70
    assert "is in a world of 3, the plan wants 4 ranks" in done.stdout
    assert "started" not in done.stdout


@pytest.mark.parametrize("mpi", ["openmpi-4.1.8"], indirect=True)
def test_where_mpirun_refuses_its_own_words_end_the_log(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, "")

    done = launch(mpi, tmp_path, "--mpirun-arg=--no-such-argument")

    assert done.returncode == 70
    assert "before any rank began" in done.stdout
    assert "--no-such-argument" in done.stdout[done.stdout.index("── launcher failed") :]


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_reader_of_the_output_that_has_gone_ends_nothing(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, "import os, time\nprint('x', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.05)\n")
    launcher = start(mpi, tmp_path, "--ranks-per-node", "2")
    wait_until(lambda: len(records_of(tmp_path, "started")) == 2)

    assert launcher.stdout is not None
    launcher.stdout.close()
    (tmp_path / "go").touch()

    assert launcher.wait(60) == 0
    [attempt] = json.loads((tmp_path / "outputs/program/run.json").read_text())["attempts"]
    assert attempt["verdict"]["kind"] == "complete"


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11", "mpich-5.0.2"], indirect=True)
def test_the_rank_that_began_is_blamed_also_when_it_closes_its_connections_first(mpi: Mpi, tmp_path: Path) -> None:
    program(
        tmp_path,
        "import os, time\n"
        "if os.environ['RANK'] == '3':\n"
        "    try:\n"
        "        raise ValueError('boom')\n"
        "    finally:\n"
        "        open('gone', 'w').close()\n"
        "        records = os.environ['CLUSTER_RUN_DIR'] + '/attempt-0001/ranks.jsonl'\n"
        "        while not os.path.exists(records): time.sleep(0.01)\n"
        "        while 'closed by peer' not in open(records).read(): time.sleep(0.01)\n"
        "while not os.path.exists('gone'): time.sleep(0.01)\n"
        "raise RuntimeError('Connection closed by peer [127.0.0.1]:1234')\n",
    )

    done = launch(mpi, tmp_path)

    assert done.stdout.splitlines()[-1] == "ValueError: boom"
    assert "rank 3 on " in done.stdout


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_second_launch_of_one_experiment_is_refused_while_the_first_runs(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, "import os, time\nwhile not os.path.exists('over'): time.sleep(0.05)\n")
    command = launch_command(mpi, "--ranks-per-node", "1", "--", "python", "program.py")
    first = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wait_until(lambda: records_of(tmp_path, "started"))

    second = launch(mpi, tmp_path)
    (tmp_path / "over").touch()

    assert second.returncode == 64
    assert f"is in use by process {first.pid} on " in second.stderr
    assert first.wait() == 0
    assert not (tmp_path / "outputs/program/attempt-0002").exists()


@pytest.mark.parametrize("mpi", ["mpich-5.0.2"], indirect=True)
def test_twenty_launches_of_one_job_at_once_on_one_host_never_meet(
    mpi: Mpi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # so that all of them begin to look at the same port
    program(tmp_path, MEETS)
    launchers = [start(mpi, tmp_path, "--ranks-per-node", "2", "--experiment-name", f"e{n}") for n in range(20)]
    wait_until(lambda: len(list(tmp_path.glob("outputs/*/listens"))) == 20)
    (tmp_path / "all-listen").touch()

    said = [launcher.communicate()[0] for launcher in launchers]

    assert [launcher.returncode for launcher in launchers] == [0] * 20, said


@pytest.mark.parametrize("mpi", ["openmpi-4.1.8"], indirect=True)
def test_a_run_directory_that_vanishes_ends_the_attempt_with_one_line(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, "import shutil, time\nshutil.rmtree('outputs', ignore_errors=True)\ntime.sleep(600)\n")

    done = launch(mpi, tmp_path)

    assert done.returncode == 70
    assert "has gone while its ranks ran" in done.stderr
    wait_until(lambda: not processes_that_mention(str(tmp_path)))


def test_an_mpirun_that_the_system_cannot_run_is_one_line(tmp_path: Path) -> None:
    program(tmp_path, "")
    for name in ("mpirun", "prterun"):
        (tmp_path / name).write_bytes(b"no program")
        (tmp_path / name).chmod(0o755)

    done = launch(Mpi("none", tmp_path / "mpirun", "Open MPI 5"), tmp_path)

    assert done.returncode == 70
    assert done.stderr == f"error: mpirun cannot be started: [Errno 8] Exec format error: '{tmp_path}/mpirun'\n"


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_simulated_nodes_share_the_gpus_that_are_visible(mpi: Mpi, tmp_path: Path) -> None:
    program(tmp_path, "import os\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\n")

    done = launch(mpi, tmp_path, "--ranks-per-node", "1", CUDA_VISIBLE_DEVICES="4,5")

    assert done.returncode == 0, done.stdout + done.stderr
    logs = tmp_path / "outputs/program/attempt-0001/logs"
    assert [(logs / f"rank-{rank}.log").read_text() for rank in (0, 1)] == ["4\n", "5\n"]


@pytest.mark.parametrize(
    ("options", "environ", "status", "message"),
    [
        (["--cluster", "slurm"], {}, 64, "error: --cluster slurm, but this is no Slurm job"),
        (["--mpirun", "no-such-mpirun"], {}, 70, "error: --mpirun no-such-mpirun: no such program"),
        (
            [],
            {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "n1"},
            70,
            "error: this is srun step 1.0",
        ),
        ([], {"SLURM_JOB_ID": "1", "SLURM_HET_SIZE": "2", "SLURM_JOB_NODELIST": "n1"}, 70, "error: heterogeneous jobs"),
        (["--spare-nodes", "1"], {}, 64, "error: --spare-nodes 1 of 1 granted: none would be left"),
        (["--nodes", "2"], {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1"}, 64, "error: --nodes is for this machine"),
        (["-x", "A B=1"], {}, 64, "error: -x 'A B': wanted NAME or NAME=VALUE"),
    ],
)
def test_what_cannot_be_launched_is_one_line_and_nothing_is_written(
    options: list[str], environ: dict[str, str], status: int, message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.launch", *options, "--", "true"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
    )

    assert done.returncode == status
    [line] = done.stderr.splitlines()
    assert line.startswith(message)
    assert list(tmp_path.iterdir()) == []


def processes_that_mention(text: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if text in command and int(process.name) != os.getpid():
            found.append(command)
    return found


def test_where_there_is_nothing_to_say_no_empty_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    say([])
    say(["one", "two"])
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_run_file_that_cannot_be_written_is_a_warning_and_the_verdict_still_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = Attempt(1, tmp_path / "gone", tmp_path / "gone/attempt-0001", tmp_path / "gone/attempt-0001/logs")

    remember(attempt, {"ended": 1.0})

    said = f"warning: run.json in {tmp_path}/gone cannot be written (No such file or directory)\n"
    assert capsys.readouterr().out == said


def test_after_a_lost_node_the_others_are_left_but_none_without_the_first() -> None:
    three = Allocation("slurm", (Host("n1", 1, 0, 1), Host("n2", 1, 0, 1), Host("n3", 1, 0, 1)))

    assert hosts_left(three, [], Verdict("node lost", 71, "", host="n1")) == 0
    assert hosts_left(three, [], Verdict("node lost", 71, "", host="n2")) == 2
    assert hosts_left(three, ["n3"], Verdict("node lost", 71, "", host="n2")) == 1
    assert hosts_left(three, ["n3"], Verdict("rank crash", 1, "", host="n2")) == 2


def test_the_first_signal_that_stops_a_launcher_is_the_one_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, Callable[[int, None], None]] = {}
    monkeypatch.setattr("signal.signal", handlers.__setitem__)
    requests = Requests(lambda: "signal")
    requests.listen()

    for number in (signal.SIGTERM, signal.SIGHUP):
        handlers[number](number, None)

    assert requests.stopped_by == signal.SIGTERM


FULL_DISK = """
import errno, os
def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
attempt.write_plan = full
"""
CANCELLED_MEANWHILE = """
from cluster.sequel import REQUEUE, Sequel
from cluster.verdict import Verdict
launch.launch_to_the_end = lambda *_: (Sequel(REQUEUE, Verdict("saved for requeue", 75, "")), [])
launch.requeue = lambda *_: "it was cancelled"
"""


@pytest.mark.parametrize(
    ("fault", "status", "said", "event"),
    [
        (FULL_DISK, 70, "cannot be written (No space left on device): df -h ", None),
        (
            CANCELLED_MEANWHILE,
            75,
            "not requeued: it was cancelled; submit the same command again, it goes on\n",
            "requeue refused",
        ),
    ],
    ids=["full disk", "cancelled meanwhile"],
)
def test_where_a_launcher_can_do_no_more_one_line_says_why(
    fault: str, status: int, said: str, event: str | None, tmp_path: Path
) -> None:
    code = f"import sys\nfrom cluster import attempt, launch\nfrom cluster.options import run\n{fault}\n"
    code += "sys.exit(run(launch.main, ['--cluster', 'local', '--experiment-name', 'a', '--', 'true']))"

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "1"},
    )

    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    assert last_event(tmp_path / "outputs/a") == event
