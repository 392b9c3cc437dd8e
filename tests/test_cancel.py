"""`cancel`, `resubmit`, and the request that is kept with a run: what is stopped, what is asked for again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import cancel, resubmit, stop
from cluster.cancel import became
from cluster.errors import LauncherError, RequestError
from cluster.lock import Holder, only_launcher_of, read_holder
from cluster.request_file import read_request, record_request
from cluster.run_state import RunState, Snapshot
from cluster.stop import await_end, element_of
from conftest import ROOT
from stand_ins import stand_ins
from waiting import wait_until

SLEEPS = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"
ENDED = {"attempt": 1, "started": 1.0, "seconds": 1.0, "verdict": {"kind": "complete", "status": 0}}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def is_ready(run_dir: Path, attempt: int = 1) -> bool:
    log = run_dir / f"attempt-{attempt:04d}/logs/rank-0.log"
    return log.exists() and log.read_text() == "ready\n"


def test_a_local_run_is_cancelled_and_the_same_request_starts_it_again(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    request = ["--cluster", "local", "--ranks-per-node", "2", "--program", "--", "python", "sleeps.py"]
    run_dir = tmp_path / "outputs/sleeps"
    submit = [sys.executable, "-m", "cluster.submit", *request]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(submit, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: is_ready(run_dir))

    refused = python("cluster", "resubmit", "sleeps", cwd=tmp_path)
    done = python("cluster", "cancel", "sleeps", cwd=tmp_path)
    first.communicate(timeout=60)
    twice = python("cluster", "cancel", "sleeps", cwd=tmp_path)
    shown = python("cluster", "resubmit", "sleeps", "--dry-run", cwd=ROOT)

    assert "sleeps is running: it goes on by itself" in refused.stderr
    assert done.stdout.splitlines() == [
        f"launcher {first.pid} stopped · sleeps: cancelled",
        "next: python -m cluster resubmit sleeps",
    ], done.stderr
    assert (twice.returncode, twice.stderr) == (64, "error: sleeps is not running: cancelled\n")
    assert "error: no run sleeps" in shown.stderr

    again = subprocess.Popen(
        [sys.executable, "-m", "cluster", "resubmit", str(run_dir)], env=environ, stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: is_ready(run_dir, 2))
    became = json.loads(python("cluster", "cancel", str(run_dir), "--json", cwd=tmp_path).stdout)
    out, _ = again.communicate(timeout=60)

    assert (became["state"], became["restarts"]) == ("cancelled", 1)
    command = (
        f"cd {tmp_path} && python -m cluster.submit --cluster local --ranks-per-node 2 --program -- python sleeps.py"
    )
    assert out.splitlines()[0] == f"submit         {command}"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([(0, 69, 60)], "step 69, saved 60"),
        ([(0, 5, None)], "step 5, saved none"),
        ([(0, 102, 102), (0, 0, None)], "step 102, saved 102"),
        ([(0, 69, 60), (60, 64, None)], "step 64, saved 60"),
        ([(0, 0, None)], None),
        ([(None, None, None)], None),
    ],
)
def test_what_a_run_came_to_is_told_also_where_its_last_attempt_had_only_begun(
    tmp_path: Path, steps: list[tuple[int | None, ...]], words: str | None
) -> None:
    attempts = [{"steps": dict(zip(("resumed", "last", "saved"), each, strict=True))} for each in steps]
    found = Snapshot(tmp_path / "a", attempts, [], None, held=False, requeued=False)

    told = became("job 12 cancelled", found, RunState("cancelled"))

    assert told == " · ".join(filter(None, ["job 12 cancelled", "a: cancelled", words]))


def test_the_request_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    record_request(tmp_path / "a", ["-x", "KEY=secret", "--", "-e", "a b"], "12")

    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a/request.json").stat().st_mode & 0o777 == 0o600
    request = read_request(tmp_path / "a")
    assert request is not None
    assert request.job_id == "12"
    assert request.command == f"cd {os.getcwd()} && python -m cluster.submit -x KEY=secret -- -e 'a b'"


def test_a_run_that_is_over_is_not_cancelled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/run.json").write_text(json.dumps({"experiment": "a", "attempts": [ENDED]}))

    with pytest.raises(RequestError, match=r"^a is not running: complete$"):
        cancel.main([str(tmp_path / "a")])


def test_a_failed_run_leaves_the_allocation_that_it_ran_in_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = "echo '12|RUNNING|None|2026-01-31T12:00:00|gpu|1|12|N/A'"
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", squeue=running, scancel=f"touch {tmp_path}/cancelled"))
    verdict = {"kind": "rank crash", "status": 1, "next": "less …"}
    attempt = {"attempt": 1, "started": 1_790_000_000.0, "job_id": "12", "verdict": verdict}
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "a/run.json").write_text(json.dumps({"experiment": "a", "attempts": [attempt]}))

    with pytest.raises(RequestError, match=r"^a is not running: rank crash$"):
        cancel.main([str(tmp_path / "a")])

    assert not (tmp_path / "cancelled").exists()


def test_a_run_that_submit_did_not_start_is_not_submitted_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/run.json").write_text(json.dumps({"experiment": "a", "attempts": [ENDED]}))

    with pytest.raises(RequestError, match="was not started by cluster submit: give its own command again"):
        resubmit.main([str(tmp_path / "a")])


def test_the_request_can_be_had_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_request(tmp_path / "a", ["--", "-e", "a"], "12")

    assert resubmit.main([str(tmp_path / "a"), "--dry-run", "--json"]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert (shown["arguments"], shown["directory"], shown["job_id"]) == (["--", "-e", "a"], os.getcwd(), "12")
    assert shown["command"].endswith("python -m cluster.submit -- -e a")


@pytest.mark.parametrize(
    ("given", "submitted"),
    [
        ([], ["--wait", "--follow", "--nodes", "1", "--", "--follow"]),
        (["--json"], ["--json", "--nodes", "1", "--", "--follow"]),
    ],
    ids=["as it was", "as one JSON object"],
)
def test_with_json_a_run_that_was_waited_for_is_submitted_again_without_waiting(
    given: list[str], submitted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_request(tmp_path / "a", ["--wait", "--follow", "--nodes", "1", "--", "--follow"], None)
    (tmp_path / "a/run.json").write_text(json.dumps({"experiment": "a", "attempts": [ENDED]}))
    asked: list[list[str]] = []
    monkeypatch.setattr("cluster.submit.main", asked.append)

    resubmit.main([str(tmp_path / "a"), *given])

    assert asked == [submitted]


def test_a_launcher_of_another_machine_is_left_alone_and_named(tmp_path: Path) -> None:
    with only_launcher_of(tmp_path / "a"):
        (tmp_path / "a/run.json").write_text(json.dumps({"experiment": "a", "attempts": []}))
        (tmp_path / "a/launcher.lock").write_text("process 4711 on elsewhere\n")

        with pytest.raises(LauncherError, match=r"runs on elsewhere, this is .*: ssh elsewhere kill -TERM 4711"):
            cancel.main([str(tmp_path / "a")])


def test_a_process_that_does_not_hold_the_run_is_not_signalled(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        with only_launcher_of(tmp_path / "a"):
            (tmp_path / "a/run.json").write_text(json.dumps({"experiment": "a", "attempts": []}))
            (tmp_path / "a/launcher.lock").write_text(f"process {other.pid} on {os.uname().nodename}\n")

            with pytest.raises(LauncherError, match="cannot be stopped from here"):
                cancel.main([str(tmp_path / "a")])
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_the_lock_tells_who_holds_a_run(tmp_path: Path) -> None:
    (tmp_path / "launcher.lock").write_text("process 4711 on n1, job 12, start 0\n")

    assert read_holder(tmp_path) == (4711, "n1", "12", 0)


def test_of_an_array_only_the_element_is_cancelled() -> None:
    detail = (
        "JobId=12 ArrayJobId=12 ArrayTaskId=3 JobState=RUNNING\n\nJobId=13 ArrayJobId=12 ArrayTaskId=0 JobState=RUNNING"
    )

    assert element_of(detail, "12") == "12_3"
    assert element_of(detail, "13") == "12_0"
    assert element_of("JobId=14 JobState=RUNNING", "14") == "14"
    assert element_of("", "15") == "15"


def test_a_launcher_that_has_not_said_yet_who_it_is_is_just_starting(tmp_path: Path) -> None:
    with only_launcher_of(tmp_path / "a"):
        (tmp_path / "a/run.json").write_text(json.dumps({"experiment": "a", "attempts": []}))
        (tmp_path / "a/launcher.lock").write_text("")

        with pytest.raises(LauncherError, match="a is just starting: try again in a moment"):
            cancel.main([str(tmp_path / "a")])
    assert read_holder(tmp_path / "none") is None


def test_a_job_that_slurm_does_not_let_go_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = "echo 'scancel: error: Kill job error on job id 12: Access denied' >&2; exit 1"
    queued = "echo '12|PENDING|Priority|N/A|gpu|1|12|N/A'"
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", scancel=refuses, squeue=queued, scontrol="exit 1"))
    record_request(tmp_path / "a", [], "12")

    with pytest.raises(
        LauncherError, match=r"^scancel 12: scancel: error: Kill job error on job id 12: Access denied$"
    ):
        cancel.main([str(tmp_path / "a")])


def test_the_end_of_a_job_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Slurm says once that the job still ends.
    scontrol = f"""
        state=COMPLETING; [ -e {tmp_path}/asked ] && state=CANCELLED; echo >> {tmp_path}/asked
        echo "JobId=12 JobName=a"; echo "   JobState=$state Reason=None"
    """
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", scontrol=scontrol))
    (tmp_path / "a").mkdir()

    await_end(tmp_path / "a", "12")

    assert len((tmp_path / "asked").read_text().splitlines()) == 2


def test_a_run_that_does_not_end_in_time_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "WAIT_AT_MOST", 0.2)
    monkeypatch.setattr(stop, "LOOK_EVERY", 0.01)

    told = f"^a still ends after 0 s: python -m cluster status {tmp_path}/a$"
    with only_launcher_of(tmp_path / "a"), pytest.raises(LauncherError, match=told):
        await_end(tmp_path / "a", None)


def make_sweep(tmp_path: Path, job_ids: dict[str, str | None]) -> Path:
    """A sweep whose runs were asked for by these jobs."""
    elements = [{"name": name, "values": {"lr": name}, "submit": [], "launch": []} for name in job_ids]
    (tmp_path / "s").mkdir(mode=0o700)
    content = {"arguments": [], "directory": str(tmp_path), "elements": elements}
    (tmp_path / "s/sweep.json").write_text(json.dumps(content))
    for name, job_id in job_ids.items():
        record_request(tmp_path / "s" / name, [], job_id)
    return tmp_path / "s"


STATE = "state() {{ grep -qx $1 {folder}/cancelled 2>/dev/null && echo CANCELLED || echo PENDING; }}\n"
QUEUE = STATE + 'for job in 12 15; do echo "$job|$(state $job)|Priority|N/A|gpu|1|$job|0-1"; done'
SHOWN = STATE + 'for id; do :; done; id=${{id%_*}}; echo "JobId=$id JobState=$(state $id) Reason=None ExitCode=0:0"'


def test_a_sweep_is_cancelled_by_its_array_and_by_the_jobs_of_single_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bin"
    scripts = {"squeue": QUEUE.format(folder=folder), "scontrol": SHOWN.format(folder=folder)}
    monkeypatch.setenv("PATH", stand_ins(folder, scancel=f"echo $1 >> {folder}/cancelled", sacct="exit 1", **scripts))
    monkeypatch.setattr(stop, "LOOK_EVERY", 0.01)
    run = make_sweep(tmp_path, {"a": "12_0", "b": "12_1", "c": "15"})

    assert cancel.main([str(run)]) == 0

    assert (folder / "cancelled").read_text() == "12\n15\n"
    assert capsys.readouterr().out.startswith("3 of 3 runs of s cancelled\nnext: python -m cluster sweep ")


def test_a_single_run_of_a_sweep_that_ends_by_itself_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    scripts = {"squeue": QUEUE.format(folder=folder), "scontrol": SHOWN.format(folder=folder)}
    ends_all = f"echo 12 >> {folder}/cancelled; echo 15 >> {folder}/cancelled; echo $1 >> {folder}/asked"
    monkeypatch.setenv("PATH", stand_ins(folder, scancel=ends_all, sacct="exit 1", **scripts))
    monkeypatch.setattr(stop, "LOOK_EVERY", 0.01)

    assert cancel.main([str(make_sweep(tmp_path, {"a": "12_0", "b": "15"}))]) == 0

    assert (folder / "asked").read_text() == "12\n"


def test_a_launcher_that_ends_by_itself_just_before_it_is_stopped_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/launcher.lock").touch()
    gone = subprocess.Popen(["true"])
    gone.wait()

    assert (
        stop.stop_launcher(tmp_path / "a", Holder(gone.pid, os.uname().nodename))
        == f"launcher {gone.pid} ended by itself"
    )


def test_a_sweep_of_which_nothing_runs_is_not_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(RequestError, match=r"^s is not running: none of its 1 runs is$"):
        cancel.main([str(make_sweep(tmp_path, {"a": None}))])


def test_an_array_that_slurm_does_not_let_go_is_told_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    refuses = "echo 'scancel: error: Access denied' >&2; exit 1"
    monkeypatch.setenv("PATH", stand_ins(folder, scancel=refuses, squeue=QUEUE.format(folder=folder)))

    with pytest.raises(LauncherError, match=r"^scancel 12: scancel: error: Access denied$"):
        cancel.main([str(make_sweep(tmp_path, {"a": "12_0"}))])


def test_a_request_that_cannot_be_kept_is_a_warning_and_one_that_cannot_be_read_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    record_request(tmp_path / "file/a", [], "12")

    assert "request.json cannot be written (File exists): resubmit will not know the run" in capsys.readouterr().out
    (tmp_path / "request.json").write_text('{"unknown": 1}')
    assert read_request(tmp_path) is None
