"""`python -m cluster attach`: a shell on the right node, and the stacks of every rank."""

import json
import os
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from cluster import attach, stacks
from cluster.allocation import Allocation, Host, from_hosts
from cluster.attach import ask_nodes, hosts_of, open_shell, shell_command, stack_lines
from cluster.channel import ALL_STACKS
from cluster.errors import LauncherError, RequestError
from cluster.lock import only_launcher_of
from cluster.machine import handles_signal, process_state
from cluster.records import read_records
from cluster.stacks import from_lines, to_lines
from cluster.watch import STACK_SIGNAL
from conftest import ROOT, Mpi
from stand_ins import stand_ins
from waiting import wait_until

WAITS = """
import os, time

def waits_alone():
    print("ready", flush=True)
    time.sleep(600)

def spins():
    print("ready", flush=True)
    while True:
        pass

waits_alone() if os.environ["RANK"] == "1" else spins()
"""

TWO = Allocation("slurm", (Host("n1", 2, 2, 8), Host("n2", 2, 2, 8)))


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_the_stacks_of_every_rank_are_shown_and_the_run_goes_on(
    mpi: Mpi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    place = ["--cluster", "local", "--nodes", "2", "--ranks-per-node", "1", "--mpirun", str(mpi.mpirun)]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "cluster", "launch", *place, "--", "python", "waits.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    run_dir = tmp_path / "outputs/waits"
    try:
        logs = run_dir / "attempt-0001/logs"
        wait_until(lambda: [log.read_text() for log in logs.glob("*.log")] == ["ready\n"] * 2)

        assert attach.main([str(run_dir), "--stacks"]) == 0
        first, second = capsys.readouterr().out.split("\n\n")
        assert attach.main([str(run_dir), "--stacks", "--rank", "1"]) == 0
        alone = capsys.readouterr().out
        assert attach.main([str(run_dir), "--stacks", "--json"]) == 0
        as_json = json.loads(capsys.readouterr().out)

        assert first.startswith("rank 0 on localhost:\n")
        assert "in spins" in first
        assert second.startswith("rank 1 on localhost:\n")
        assert "in waits_alone" in second
        assert "in waits_alone" in alone
        assert "rank 0" not in alone
        assert [("in spins" in one["stacks"], one["rank"]) for one in as_json] == [(True, 0), (False, 1)]
        with pytest.raises(RequestError, match="on the machine of its launcher"):
            attach.main([str(run_dir)])
        assert launcher.poll() is None
        assert {record["state"] for record in read_records(run_dir / "attempt-0001")} == {"started"}
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(60)


def test_json_is_for_stacks() -> None:
    with pytest.raises(RequestError, match=r"^--json is for --stacks"):
        attach.main(["a", "--json"])


def test_a_run_that_is_over_has_nothing_to_attach_to(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"experiment": "a", "attempts": []}')

    with pytest.raises(RequestError, match="is not running: unfinished"):
        attach.main([str(tmp_path)])


def test_the_shell_opens_on_the_node_of_the_rank_beside_what_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/zsh")
    [host] = hosts_of(TWO, rank=3, node=None)
    options = Namespace(ssh="ssh -p 2222")

    srun = ["srun", "--jobid=12", "--overlap", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--nodelist=n2"]
    for at_a_terminal, words in ((True, ["--pty"]), (False, [])):
        monkeypatch.setattr("sys.stdin.isatty", lambda answer=at_a_terminal: answer)
        assert shell_command(options, "12", "slurm", host) == [*srun, *words, "/bin/zsh"]
    assert shell_command(options, None, "ssh", host) == ["ssh", "-p", "2222", "-t", "n2"]


def test_a_rank_or_node_that_is_not_there_is_an_error_that_says_which_are() -> None:
    assert hosts_of(TWO, None, None) == ["n1", "n2"]
    with pytest.raises(RequestError, match="there are ranks 0 to 3, no rank 4"):
        hosts_of(TWO, 4, None)
    with pytest.raises(RequestError, match="n3 is no node of this run: it has n1, n2"):
        hosts_of(TWO, None, "n3")


def test_answers_of_several_nodes_are_told_apart_whatever_else_is_printed() -> None:
    one = {"rank": 0, "host": "n1", "state": "S", "stacks": "a\nb\n"}
    two = {"rank": 1, "host": "n2", "state": "T", "stacks": ""}
    mixed = [line for pair in zip(to_lines(one), [*to_lines(two), "srun: words", "[1]"], strict=True) for line in pair]

    assert from_lines("\n".join(mixed)) == [one, two]


def test_a_rank_without_an_answer_says_why() -> None:
    told = [
        {"rank": 0, "host": "n1", "state": "S", "stacks": "Thread 0x1 (most recent call first):\n"},
        {"rank": 1, "host": "n1", "state": "T", "stacks": ""},
        {"rank": 2, "host": "n2", "state": "S", "stacks": ""},
    ]

    assert stack_lines(told, TWO, ["n1", "n2"], None) == [
        "rank 0 on n1:\nThread 0x1 (most recent call first):",
        "rank 1 on n1: no answer (stopped)",
        "rank 2 on n2: no answer (its program is no Python)",
        "rank 3 on n2: has not begun, or has ended",
    ]


def test_hosts_without_slurm_are_asked_over_ssh_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "\n".join(to_lines({"rank": 0, "host": "n1", "state": "S", "stacks": "a\n"}))
    ssh = f"echo $1 >> {tmp_path}/asked\n[ $1 = n2 ] || cat <<'END'\n{answer}\nEND"
    monkeypatch.setenv("PATH", stand_ins(tmp_path, ssh=ssh))

    told = ask_nodes(Namespace(ssh="ssh"), None, from_hosts("n1,n2"), ["n1", "n2"], tmp_path / "attempt-0001")

    assert [one["stacks"] for one in told] == ["a\n"]
    assert (tmp_path / "asked").read_text() == "n1\nn2\n"


@pytest.mark.parametrize(
    ("srun", "words"),
    [
        ("echo srun: error: Invalid job id specified >&2; exit 1", "srun: srun: error: Invalid job id specified"),
        ("exit 3", "srun: exit status 3"),
        ("exec sleep 600", r"srun did not reach the nodes \(.*timed out"),
    ],
    ids=["refused", "silent", "never ends"],
)
def test_nodes_that_cannot_be_reached_are_an_error_in_sruns_own_words(
    srun: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, srun=srun))
    monkeypatch.setattr(attach, "STACKS_WITHIN", 0.5)

    granted = from_hosts("n1")._replace(source="slurm")
    with pytest.raises(LauncherError, match=words):
        ask_nodes(Namespace(ssh="ssh"), "12", granted, ["n1"], tmp_path)


def test_where_there_is_no_srun_a_login_node_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(LauncherError, match="no srun on PATH: attach from a login node of the cluster"):
        open_shell(["srun", "bash"], "n1")


def test_a_run_that_has_no_plan_yet_is_just_starting(tmp_path: Path) -> None:
    with only_launcher_of(tmp_path / "a"):
        (tmp_path / "a/run.json").write_text('{"experiment": "a", "attempts": []}')

        with pytest.raises(LauncherError, match="a is just starting: try again in a moment"):
            attach.main([str(tmp_path / "a")])


def test_stacks_of_a_local_run_on_another_machine_are_asked_for_there(tmp_path: Path) -> None:
    with only_launcher_of(tmp_path / "a"):
        (tmp_path / "a/run.json").write_text('{"experiment": "a", "attempts": []}')
        (tmp_path / "a/launcher.lock").write_text("process 4711 on elsewhere\n")
        (tmp_path / "a/attempt-0001").mkdir()
        plan = {"log_dir": "/logs", "source": "local", "hosts": [["localhost", 1, 0, 1]]}
        (tmp_path / "a/attempt-0001/plan.json").write_text(json.dumps(plan))

        with pytest.raises(LauncherError, match=r"of a runs on elsewhere, this is .*: ssh elsewhere python -m cluster"):
            attach.main([str(tmp_path / "a"), "--stacks"])


def test_a_rank_that_ends_while_it_is_asked_has_no_answer(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()

    assert stacks.ask(gone.pid) is None
    assert not handles_signal(gone.pid, STACK_SIGNAL)
    assert process_state(gone.pid) == ""
    asked = stacks.Asked(gone.pid, tmp_path / "none")
    assert stacks.read_answer(asked) == ""


def test_the_more_ranks_are_asked_the_less_is_shown_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, srun=f"echo $* >> {tmp_path}/asked"))
    granted = Allocation("slurm", tuple(Host(f"n{number}", 8, 8, 64) for number in range(1000)))

    for hosts in (["n1"], [host.name for host in granted.hosts]):
        ask_nodes(Namespace(ssh="ssh"), "12", granted, hosts, tmp_path)

    shares = [int(line.split()[-1]) for line in (tmp_path / "asked").read_text().splitlines()]
    assert shares == [ALL_STACKS // 8, ALL_STACKS // 8000]


def test_of_an_answer_at_most_so_much_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {"rank": 0, "state": "started", "host": socket.gethostname(), "pid": os.getpid()}
    (tmp_path / "ranks.jsonl").write_text(json.dumps(started) + "\n")
    (tmp_path / "answer").write_text("Thread 0x1 (most recent call first):\n" + '  File "a.py", line 1 in a\n' * 99)
    monkeypatch.setattr(stacks, "ask", lambda pid: stacks.Asked(pid, tmp_path / "answer"))
    monkeypatch.setattr(stacks, "QUIET", 0.0)

    [told] = stacks.stacks_here(tmp_path, 200)

    assert told["stacks"].startswith("Thread 0x1 ")
    assert len(told["stacks"]) == 200


def test_a_program_that_does_not_answer_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "WITHIN", 0.1)

    stacks.await_answers([stacks.Asked(os.getpid(), tmp_path / "none")])
