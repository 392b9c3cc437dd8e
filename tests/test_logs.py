"""`python -m cluster logs`: what ranks print, line by line, through all that happens to files and runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.error_lines import Tracebacks
from cluster.errors import LauncherError, RequestError
from cluster.explain import main as explain
from cluster.growing_logs import CHUNK, LONGEST_LINE, GrowingLog, prefixed
from cluster.lock import only_launcher_of
from cluster.logs import main, number_of_lines
from cluster.request_file import record_request
from cluster.status import main as status
from conftest import ROOT
from stand_ins import stand_ins

TRACEBACK = """\
Traceback (most recent call last):
  File "train.py", line 5, in <module>
    raise ValueError("boom")
ValueError: boom
"""


def read(log: GrowingLog) -> bytes:
    return b"".join(log.read())


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def make_attempt(run_dir: Path, number: int = 1, logs: tuple[str, ...] = ("",), **facts: Any) -> Path:
    """An attempt with these logs of its ranks, added to run.json; the directory of its logs."""
    attempt = run_dir / f"attempt-{number:04d}"
    (attempt / "logs").mkdir(parents=True)
    for rank, text in enumerate(logs):
        (attempt / f"logs/rank-{rank}.log").write_text(text)
    plan = {"log_dir": str(attempt / "logs"), "source": "slurm", "hosts": [["n1", len(logs), 0, 0]]}
    (attempt / "plan.json").write_text(json.dumps(plan))
    record(run_dir, number, **facts)
    return attempt / "logs"


def record(run_dir: Path, number: int, **facts: Any) -> None:
    """Write what run.json says of an attempt."""
    path = run_dir / "run.json"
    run: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"experiment": run_dir.name, "attempts": []}
    )
    others = [attempt for attempt in run["attempts"] if attempt["attempt"] != number]
    aside = run_dir / "aside"
    aside.write_text(json.dumps({**run, "attempts": [*others, {"attempt": number, "started": number * 1.0, **facts}]}))
    aside.rename(path)


def ended(kind: str = "complete") -> dict[str, Any]:
    return {"verdict": {"kind": kind, "status": 0}}


# ── one file ──────────────────────────────────────────────────────────────────────────────────────


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = GrowingLog(path, prefixed("3: "))

    assert read(log) == b""
    append(path, "one\ntw")
    assert read(log) == b"3: one\n"
    append(path, "o\n\nthree")
    assert read(log) == b"3: two\n3: \n"
    assert read(log) == b""
    assert b"".join(log.rest()) == b"3: three\n"


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK], ids=str)
def test_a_line_longer_than_what_is_read_at_once_stays_whole(length: int, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = GrowingLog(path, prefixed(""))

    append(path, "x" * length)
    assert read(log) == b""
    append(path, "\nnext\n")

    assert read(log) == b"x" * length + b"\nnext\n"


def test_a_line_that_never_ends_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = GrowingLog(path, prefixed(""))

    append(path, "x" * (LONGEST_LINE + 10))

    assert b"".join([read(log), *log.rest()]).replace(b"\n", b"") == b"x" * (LONGEST_LINE + 10)


def test_a_log_that_was_cut_short_is_read_from_its_new_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = GrowingLog(path, prefixed(""))
    append(path, "a long first line\n")
    assert read(log) == b"a long first line\n"

    path.write_text("new\n")

    assert read(log) == b"new\n"


def test_of_a_log_whose_directory_has_gone_nothing_more_comes(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs/log"
    log = GrowingLog(path, prefixed(""))
    append(path, "one\n")
    assert read(log) == b"one\n"

    shutil.rmtree(tmp_path / "logs")

    assert b"".join([read(log), *log.rest()]) == b""


def test_of_a_log_that_is_not_there_yet_everything_is_shown_once_it_is(tmp_path: Path) -> None:
    log = GrowingLog(tmp_path / "log", prefixed(""), 2)
    assert b"".join(log.rest()) == b""

    append(tmp_path / "log", "1\n2\n3\n")

    assert read(log) == b"1\n2\n3\n"


def test_of_a_log_whose_old_file_was_removed_the_new_one_is_shown(tmp_path: Path) -> None:
    log = GrowingLog(tmp_path / "log", prefixed(""))
    append(tmp_path / "log", "one\n")
    assert read(log) == b"one\n"

    append(tmp_path / "new", "two\n")
    (tmp_path / "new").rename(tmp_path / "log")

    assert read(log) == b"two\n"


def test_of_a_log_that_was_rotated_the_rest_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = GrowingLog(path, prefixed(""))
    append(path, "one\n")
    assert read(log) == b"one\n"

    append(path, "two\nthr")
    path.rename(tmp_path / "log.1")
    append(path, "four\n")

    assert read(log) == b"two\nthr\nfour\n"
    assert read(log) == b""


@pytest.mark.parametrize(
    ("text", "last", "shown"),
    [
        ("1\n2\n3\n", 2, b"2\n3\n"),
        ("1\n2\n3\n", 0, b""),
        ("1\n2\n3\n", 9, b"1\n2\n3\n"),
        ("1\n2\n3\n", None, b"1\n2\n3\n"),
        ("1\n2\n3", 2, b"2\n3\n"),
        ("1\n2\n\n", 1, b"\n"),
        ("", 5, b""),
        ("1\n" + "x" * 2 * CHUNK + "\n2\n", 2, b"x" * 2 * CHUNK + b"\n2\n"),
    ],
    ids=str,
)
def test_reading_begins_with_the_last_lines(text: str, last: int | None, shown: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(text)

    assert b"".join(GrowingLog(path, prefixed(""), last).rest()) == shown


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def logs(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., list[str]]:
    """The command on the runs of this folder: the lines that it shows."""

    def show(*arguments: str) -> list[str]:
        assert main([*arguments, "--output-dir", str(tmp_path)]) == 0
        sys.stdout.flush()
        return capfdbinary.readouterr().out.decode().splitlines()

    return show


def test_the_lines_of_all_ranks_begin_with_their_rank(logs: Callable[..., list[str]], tmp_path: Path) -> None:
    make_attempt(tmp_path / "a", 1, tuple(f"I am {rank}\n" for rank in range(11)), **ended())

    lines = logs("a")

    assert len(lines) == 11
    assert (lines[0], lines[10]) == (" 0: I am 0", "10: I am 10")


def test_one_rank_is_shown_as_it_is_and_an_earlier_attempt_by_its_number(
    logs: Callable[..., list[str]], tmp_path: Path
) -> None:
    make_attempt(tmp_path / "a", 1, ("first\n", "old\n"), **ended("rank crash"))
    make_attempt(tmp_path / "a", 2, ("second\n", "1\n2\n3\n"), **ended())

    assert logs("a", "--rank", "1", "-n", "2") == ["2", "3"]
    assert logs("a", "--rank", "1", "--attempt", "1") == ["old"]
    with pytest.raises(RequestError, match=r"^attempt 2 of a has ranks 0 to 1, no rank 2"):
        logs("a", "--rank", "2")
    with pytest.raises(RequestError, match="has no attempt 3: the newest is 2"):
        logs("a", "--attempt", "3")


def test_errors_are_the_tracebacks_and_the_ranks_that_failed(logs: Callable[..., list[str]], tmp_path: Path) -> None:
    torch_style = "".join(f"[rank1]: {line}\n" for line in TRACEBACK.splitlines())
    directory = make_attempt(tmp_path / "a", 1, (f"step 1\n{TRACEBACK}step 2\n", f"x\n{torch_style}y\n"), **ended())
    failed = {"rank": 1, "host": "n1", "state": "failed", "outcome": "exception", "status": 1, "step": 7}
    records = [{"rank": 1, "state": "started"}, {**failed, "detail": TRACEBACK}]
    lines_of_records = [*map(json.dumps, records), '{"rank": 0, "state": "fai']  # the disk was full
    (directory.parent / "ranks.jsonl").write_text("".join(f"{line}\n" for line in lines_of_records))

    lines = logs("a", "--errors")

    assert lines[:4] == [f"0: {line}" for line in TRACEBACK.splitlines()]
    assert lines[4:8] == [f"1: {line}" for line in torch_style.splitlines()]
    assert lines[8:] == ["── rank 1 on n1 failed: exception, exit status 1, step 7: ValueError: boom"]


def test_errors_end_with_the_verdict_also_where_the_guilty_rank_said_nothing(
    logs: Callable[..., list[str]], tmp_path: Path
) -> None:
    verdict = {"kind": "rank crash", "status": 137, "rank": 1, "host": "n1", "summary": "its watcher was killed"}
    make_attempt(tmp_path / "a", 1, ("", ""), seconds=2.0, verdict=verdict)
    make_attempt(tmp_path / "a", 2, ("", ""), **ended())
    said = "rank crash, exit status 137, rank 1 on n1: its watcher was killed"

    assert logs("a", "--errors", "--attempt", "1") == [f"── {said}"]
    assert logs("a", "--attempt", "1") == logs("a", "--errors", "--attempt", "2") == []
    [line] = logs("a", "--errors", "--attempt", "1", "--json")
    assert json.loads(line) == {"attempt": 1, "rank": 1, "time": 3.0, "line": said}


def test_what_links_a_rank_to_another_belongs_to_the_errors(tmp_path: Path) -> None:
    joined = f"{TRACEBACK}\nDuring handling of the above exception, another exception occurred:\n\n{TRACEBACK}x\n"

    shown = Tracebacks(prefixed(""))(joined.encode())

    assert shown.decode().splitlines() == [line for line in joined.splitlines() if line not in ("", "x")]


@pytest.mark.parametrize(("given", "number"), [("all", None), ("7", 7)])
def test_the_last_lines_are_a_number_or_all(given: str, number: int | None) -> None:
    assert number_of_lines(given) == number
    with pytest.raises(ArgumentTypeError, match=r"^given '-1', wanted a whole number or all$"):
        number_of_lines("-1")


def test_a_run_without_an_attempt_has_no_logs_yet(tmp_path: Path) -> None:
    record_request(tmp_path / "a", [], None)

    hint = f"a has no attempt yet: python -m cluster status {tmp_path}/a, or --follow"
    with pytest.raises(RequestError, match=f"^{re.escape(hint)}$"):
        main([str(tmp_path / "a")])


def test_logs_of_an_attempt_without_a_plan_are_those_that_are_there(
    logs: Callable[..., list[str]], tmp_path: Path
) -> None:
    directory = make_attempt(tmp_path / "a", 1, ("x\n", "y\n"), **ended())
    (directory.parent / "plan.json").unlink()

    assert logs("a") == ["0: x", "1: y"]


@pytest.mark.parametrize(
    "text", ['{"hosts": [["n1", 2', '{"hosts": [["n1"]]}', "[3]", '{"source": "slurm", "hosts": []}']
)
def test_a_plan_that_is_damaged_is_one_error_that_names_it(text: str, tmp_path: Path) -> None:
    directory = make_attempt(tmp_path / "a")
    (directory.parent / "plan.json").write_text(text)

    for command in (main, explain):
        with pytest.raises(
            LauncherError, match=r"/a/attempt-0001/plan\.json is damaged \(.+\): look at the files beside"
        ):
            command([str(tmp_path / "a")])
    assert status([str(tmp_path / "a")]) == 0


def test_that_there_are_no_errors_is_said_beside_the_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_attempt(tmp_path / "a", 1, ("step 1\n", "step 1\n"), **ended())

    assert main(["a", "--errors", "--output-dir", str(tmp_path)]) == 0

    assert capfd.readouterr() == ("", "── attempt 1 of a: no errors\n")


def test_every_line_can_be_had_as_json_and_a_failed_ranks_record_with_its_time(
    logs: Callable[..., list[str]], tmp_path: Path
) -> None:
    directory = make_attempt(tmp_path / "a", 1, (f"step 1\n{TRACEBACK}", "café\n"), **ended())
    failed = {"rank": 0, "host": "n1", "state": "failed", "outcome": "exception", "status": 1, "time_ns": 1_500_000_000}
    (directory.parent / "ranks.jsonl").write_text(json.dumps(failed) + "\n")
    (directory / "rank-1.log").write_bytes("café\n".encode("latin-1"))
    (directory.parent / "mpirun.log").write_text("by mpirun\n")

    def objects(*arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in logs("a", "--json", *arguments)]

    traceback = [{"attempt": 1, "rank": 0, "time": None, "line": line} for line in TRACEBACK.splitlines()]
    said = "rank 0 on n1 failed: exception, exit status 1"
    assert objects("--rank", "0") == [{"attempt": 1, "rank": 0, "time": None, "line": "step 1"}, *traceback]
    assert objects("--rank", "1") == [{"attempt": 1, "rank": 1, "time": None, "line": "caf\ufffd"}]
    assert objects("--errors") == [*traceback, {"attempt": 1, "rank": 0, "time": 1.5, "line": said}]
    assert objects("--launcher") == [{"attempt": None, "rank": None, "time": None, "line": "by mpirun"}]


def test_the_launchers_log_is_the_jobs_or_what_mpirun_printed(
    logs: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    make_attempt(tmp_path / "here", 1, **ended())
    (tmp_path / "here/attempt-0001/mpirun.log").write_text("by mpirun\n")
    make_attempt(tmp_path / "job", 1, job_id="12", **ended())
    (tmp_path / "job/job-prepare-12.log").write_text("tokens\n")
    (tmp_path / "job/job-12.log").write_text("plan and verdict\n")

    assert logs("here", "--launcher") == ["by mpirun"]
    assert logs("job", "--launcher") == ["plan and verdict"]
    assert logs("12", "--launcher") == ["plan and verdict"]
    record_request(tmp_path / "job", [], "13")
    assert logs("job", "--launcher") == ["plan and verdict"]
    (tmp_path / "job/job-13.log").write_text("module: not found\n")
    assert logs("job", "--launcher") == ["module: not found"]


def test_the_log_of_an_arrays_last_element_is_its_own(
    logs: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job_id in ("12", "13"):
        (tmp_path / f"{job_id}.log").write_text(f"of {job_id}\n")
    records = "".join(f"JobId={job_id} ArrayJobId=12\\n   StdOut={tmp_path}/{job_id}.log\\n\\n" for job_id in (13, 12))
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", scontrol=f"printf '{records}'"))
    make_attempt(tmp_path / "a", 1, job_id="12", **ended())

    assert logs("a", "--launcher") == ["of 12"]


def test_the_log_of_a_job_goes_on_with_its_next_attempt_and_no_line_comes_twice(tmp_path: Path) -> None:
    run_dir = tmp_path / "a"
    with only_launcher_of(run_dir):
        make_attempt(run_dir, 1, job_id="12")
        (run_dir / "a-12.log").write_text("first\n")
        command = [sys.executable, "-m", "cluster.logs", str(run_dir), "--follow", "--launcher"]
        environ = {**os.environ, "PATH": ""}
        follower = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environ
        )
        assert follower.stdout is not None
        assert follower.stdout.readline() == "first\n"
        second = run_dir / "attempt-0002"
        second.mkdir()
        (second / "mpirun.log").write_text("not the job's\n")
        (second / "plan.json").write_text("{}")  # it begins, and run.json does not say so yet
        assert follower.stdout.readline() == "── attempt 2\n"
        append(run_dir / "a-12.log", "second\n")
        assert follower.stdout.readline() == "second\n"
        record(run_dir, 1, job_id="12", **ended("rank crash"))
        record(run_dir, 2, job_id="12", **ended())
        (run_dir / "events.jsonl").write_text('{"event": "verdict"}\n')

    rest, _ = follower.communicate(timeout=60)

    assert rest == "── a: complete\n"


def test_an_attempt_that_never_began_is_not_followed(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    directory = make_attempt(tmp_path / "a", 1, ("x\n",), **ended())
    (directory.parent / "plan.json").unlink()

    assert main([str(tmp_path / "a"), "--follow"]) == 0

    said = capfdbinary.readouterr()
    assert (said.out, said.err.decode()) == (b"", "── a: complete\n")


def test_following_one_attempt_ends_where_the_next_begins(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with only_launcher_of(tmp_path / "a"):
        make_attempt(tmp_path / "a", 1, ("one\n",), **ended("node lost"))
        make_attempt(tmp_path / "a", 2, ("two\n",))

        assert main([str(tmp_path / "a"), "--follow", "--attempt", "1"]) == 0

    assert capfdbinary.readouterr().out == b"0: one\n"


def test_the_log_of_a_job_that_failed_before_its_launcher_began_is_shown(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = dict.fromkeys(("squeue", "scontrol"), "exit 1")
    monkeypatch.setenv("PATH", stand_ins(tmp_path, sacct="echo '12|FAILED|Unknown|gpu|12'", **away))
    record_request(tmp_path / "a", [], "12")
    (tmp_path / "a/a-12.log").write_text("module: not found\n")

    assert main([str(tmp_path / "a"), "--launcher", "--follow"]) == 0

    said = capfdbinary.readouterr()
    assert said.out == b"module: not found\n"
    assert said.err.decode() == "── a: failed (before its launcher began)\n"


def test_following_goes_on_through_a_requeue_and_ends_with_the_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "a"
    with only_launcher_of(run_dir):
        first = make_attempt(run_dir, 1, ("before\n", ""), job_id="12")
        command = [sys.executable, "-m", "cluster.logs", str(run_dir), "--follow", "-n", "1"]
        follower = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PATH": ""},
        )
        assert follower.stdout is not None
        assert follower.stdout.readline() == "0: before\n"
        append(first / "rank-1.log", "last words")
        record(run_dir, 1, job_id="12", **ended("saved for requeue"))
        (run_dir / "events.jsonl").write_text('{"event": "requeue"}\n')
    with only_launcher_of(run_dir):
        second = make_attempt(run_dir, 2, ("", "", ""), job_id="12")
        shown: list[str] = []
        while not shown or "attempt" not in shown[-1]:
            shown.append(follower.stdout.readline().rstrip("\n"))
        append(second / "rank-2.log", "one\ntwo")
        record(run_dir, 2, job_id="12", **ended())
        (run_dir / "events.jsonl").write_text('{"event": "verdict"}\n')

    rest, _ = follower.communicate(timeout=60)

    assert [line for line in shown if "queued" not in line] == ["1: last words", "── attempt 2"]
    assert rest.splitlines() == ["2: one", "2: two", "── a: complete"]
    assert follower.returncode == 0
