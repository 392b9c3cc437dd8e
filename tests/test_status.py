"""What `python -m cluster.status` shows of a run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RequestError
from cluster.goodput import PARTS
from cluster.rundir import launcher_holds, only_launcher_of
from cluster.status import describe, find_run, main, report_lines
from conftest import ROOT

CRASHED: dict[str, Any] = {
    "attempt": 1,
    "started": 1_790_000_000.0,
    "ended": 1_790_000_083.0,
    "seconds": 83.0,
    "job_id": "7",
    "verdict": {
        "kind": "rank crash",
        "status": 1,
        "summary": "raised ValueError: boom",
        "rank": 3,
        "host": "n2",
        "gpu": "1",
        "next": "less logs/rank-3.log",
    },
    "steps": {"resumed": 0, "last": 17, "saved": 10},
    "accounting": {**dict.fromkeys(PARTS, 0.0), "train": 60.0, "start": 3.0, "lost": 20.0},
}


def make_run(output_dir: Path, name: str = "a", attempts: list[dict[str, Any]] | None = None, **facts: Any) -> Path:
    run_dir = output_dir / name
    (run_dir / "attempt-0001").mkdir(parents=True)
    (run_dir / "attempt-0001/plan.json").write_text(json.dumps({"log_dir": "/logs/attempt-0001"}))
    run = {"experiment": name, "attempts": [CRASHED] if attempts is None else attempts, **facts}
    (run_dir / "run.json").write_text(json.dumps(run))
    return run_dir


def test_a_run_shows_its_attempts_its_goodput_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    run_dir = make_run(tmp_path, excluded_hosts=["n2"])

    assert main(["a", "--output-dir", str(tmp_path)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a · rank crash · {run_dir}"
    assert [line.split("  ")[0] for line in lines[2:4]] == ["attempt", "1"]
    for fact in ("0:01:23", "rank crash (1)", "rank 3 on n2, GPU 1", "0 → 17", "10"):
        assert fact in lines[3]
    assert "effective training time 72.3% of 0:01:23 (72.3% without the queue), 0 restarts" in lines
    assert lines[-3:] == ["excluded hosts: n2", "next: less logs/rank-3.log", "logs: /logs/attempt-0001"]


def test_an_attempt_without_verdict_runs_while_its_launcher_holds_the_directory(tmp_path: Path) -> None:
    run_file = {"experiment": "a", "attempts": [{"attempt": 1, "started": 1.0}], "excluded_hosts": []}

    assert describe(tmp_path, run_file, held=True)["state"] == "running"
    assert describe(tmp_path, run_file, held=False)["state"].startswith("unfinished")
    assert "running" in report_lines(describe(tmp_path, run_file, held=True))[3]


def test_looking_whether_a_launcher_holds_the_directory_leaves_it_as_it_is(tmp_path: Path) -> None:
    assert not launcher_holds(tmp_path)
    with only_launcher_of(tmp_path):
        assert launcher_holds(tmp_path)
    assert not launcher_holds(tmp_path)
    with only_launcher_of(tmp_path):
        pass


def test_a_run_is_found_by_its_directory_by_its_name_and_as_the_newest(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)

    assert find_run(str(run_dir), Path("nowhere")) == run_dir
    assert find_run("a", tmp_path) == run_dir
    assert find_run(None, tmp_path) == run_dir


@pytest.mark.parametrize(
    ("given", "words"),
    [("smoke_mpu", "did you mean smoke_mpi?"), ("zzz", "wanted a directory with run.json"), (None, "")],
)
def test_an_unknown_run_is_an_error_that_says_what_was_probably_meant(
    given: str | None, words: str, tmp_path: Path
) -> None:
    if given:
        make_run(tmp_path, "smoke_mpi")

    with pytest.raises(RequestError, match=f"^no run .*{words.replace('?', '.')}"):
        find_run(given, tmp_path)


def test_a_run_of_an_earlier_version_is_shown_too(tmp_path: Path) -> None:
    old = {"attempt": 1, "started": 1.0, "ended": 2.0, "seconds": 1.0, "verdict": {"kind": "complete", "status": 0}}

    assert main([str(make_run(tmp_path, attempts=[old]))]) == 0
    assert main([str(make_run(tmp_path, "empty", attempts=[]))]) == 0


def test_everything_can_be_had_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(make_run(tmp_path)), "--json"])

    report = json.loads(capsys.readouterr().out)
    assert report["attempts"] == [CRASHED]
    assert report["goodput"]["effective"] == pytest.approx(60 / 83)
    assert (report["state"], report["logs"]) == ("rank crash", "/logs/attempt-0001")


def test_half_a_run_json_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    (make_run(tmp_path) / "run.json").write_text('{"attempts": [')

    done = subprocess.run(
        [sys.executable, "-m", "cluster.status", str(tmp_path / "a")], capture_output=True, text=True, cwd=ROOT
    )

    assert done.returncode == 64
    assert done.stderr.startswith("error: ")
    assert "run.json cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
