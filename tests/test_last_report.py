"""When a run's job ends, the report that the trainer has written tells the verdict too."""

import sys
from pathlib import Path

import pytest

from cluster.last_report import refresh_report
from report_runs import make_run

TRAINER = [sys.executable, "-m", "training.train_llm"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "a"
    make_run(folder, steps=20, ranks=2)
    return folder


def test_a_report_that_is_there_is_written_again(run_dir: Path) -> None:
    (run_dir / "report.html").write_text("while it trained")
    refresh_report(run_dir, TRAINER)
    assert "<h1" in (run_dir / "report.html").read_text()


def test_where_the_trainer_wrote_none_there_is_none(run_dir: Path) -> None:
    refresh_report(run_dir, TRAINER)
    assert not (run_dir / "report.html").exists()


def test_another_program_has_no_report_of_ours(run_dir: Path) -> None:
    (run_dir / "report.html").write_text("its own")
    refresh_report(run_dir, [sys.executable, "my_script.py"])
    assert (run_dir / "report.html").read_text() == "its own"


def test_a_report_that_fails_leaves_the_one_before_and_no_word(
    run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "report.html").write_text("while it trained")
    refresh_report(run_dir, ["/no/such/python", *TRAINER[1:]])
    assert (run_dir / "report.html").read_text() == "while it trained"
    assert capfd.readouterr() == ("", "")
