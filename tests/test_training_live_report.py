"""The report that is rewritten beside the training."""

import os
import sys
import time
from pathlib import Path

import pytest

from training import live_report
from training.errors import InputError
from training.live_report import LiveReport, interval_seconds

WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1], 'report.html').open('a').write('x')"
HANGS = "import time; time.sleep(1000)"
FAILS = "raise SystemExit(3)"


def live(folder: Path, code: str, now: list[float]) -> LiveReport:
    """A report of every 10 s, written by this program, by a clock that the test moves."""
    return LiveReport(folder, 10.0, lambda: now[0], (sys.executable, "-S", "-c", code))


def wait_for_its_end(report: LiveReport) -> None:
    assert report._process is not None
    report._process.wait()


def test_it_is_written_when_the_time_has_come_and_once_more_at_the_end(tmp_path: Path):
    now = [0.0]
    report = live(tmp_path, WRITES, now)
    assert report.rewrite() == []
    assert report._process is None
    now[0] = 10.0
    assert report.rewrite() == []
    wait_for_its_end(report)
    now[0] = 15.0
    assert report.rewrite() == []
    assert report.finish() == []
    assert (tmp_path / "report.html").read_text() == "xx"


def test_a_training_that_was_shorter_than_the_interval_does_not_wait_for_a_report(tmp_path: Path):
    assert live(tmp_path, WRITES, [0.0]).finish() == []
    assert not (tmp_path / "report.html").exists()


def test_one_that_hangs_is_left_alone_meanwhile_and_ended_with_the_training(tmp_path: Path):
    now = [0.0]
    report = live(tmp_path, HANGS, now)
    now[0] = 10.0
    report.rewrite()
    process = report._process
    assert process is not None
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
    now[0] = 20.0
    assert report.rewrite() == []
    assert report._process is process
    report.stop()
    assert process.returncode == -9


def test_one_that_hangs_at_the_end_is_given_up(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(live_report, "LONGEST_SECONDS", 0.2)
    now = [0.0]
    report = live(tmp_path, HANGS, now)
    now[0] = 10.0
    begun = time.monotonic()
    [warning] = report.finish()
    assert warning.startswith("warning: the report was not written (not done after 0.2 s)")
    assert time.monotonic() - begun < 60
    assert report._process is None


def test_one_that_fails_is_told_once(tmp_path: Path):
    now = [0.0]
    report = live(tmp_path, FAILS, now)
    told: list[str] = []
    for _ in range(3):
        now[0] += 10.0
        told += report.rewrite()
        wait_for_its_end(report)
    how = f"`python -m training.report {tmp_path}` says more; the training goes on"
    assert told + report.finish() == [f"warning: the report was not written (exit status 3): {how}"]


def test_one_that_cannot_be_started_is_told_and_ends_nothing(tmp_path: Path):
    now = [0.0]
    report = LiveReport(tmp_path, 10.0, lambda: now[0], ["/no/such/python"])
    now[0] = 10.0
    [warning] = report.rewrite()
    assert "No such file or directory" in warning


def test_without_the_extra_there_is_none_unless_it_is_asked_for(monkeypatch):
    assert interval_seconds(None) == 300
    assert interval_seconds(0.5) == 30
    assert interval_seconds(0) is None
    monkeypatch.setattr(live_report, "NEEDS", ("no_such_package",))
    assert interval_seconds(None) is None
    with pytest.raises(InputError, match=r"--report-interval 2: the report needs pip install .*or give 0 for none"):
        interval_seconds(2)
