"""metrics.jsonl and the lines of a log."""

import json
import os
from pathlib import Path

import pytest

from training.display import Display, clock
from training.errors import StorageError
from training.metrics import MetricsFile, before
from training.ranks import RankInfo
from training.run_directory import RunDirectory
from training.run_log import RunLog


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_of_steps_that_were_lost_are_dropped_on_resume(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 1, "eval_loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    file = MetricsFile(path, last_step=1)
    file.write({"step": 2, "loss": 1.5})
    file.close()
    assert rows(path) == [{"step": 1, "loss": 3}, {"step": 1, "eval_loss": 3}, {"step": 2, "loss": 1.5}]


def test_a_row_is_on_disk_before_the_next_one_and_is_always_json(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write({"step": 1, "perplexity": float("inf")})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "perplexity": None}]


def test_a_log_gets_the_first_and_the_last_step_and_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("training.display.time.monotonic", lambda: now[0])
    display = Display(0, 100, bar=False)
    for step in range(1, 101):
        now[0] += 0.5
        display.step({"step": step, "epoch": step / 50, "loss": 2.0, "lr": 1e-3, "tokens_per_second": 1234.5})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[0] == "step 1/100 · epoch 0.02 · loss 2.0000 · lr 1.00e-03 · 1,234 tokens/s · 0:00 passed · ETA 0:50"
    assert lines[-1].startswith("step 100/100")
    assert lines[-1].endswith("ETA 0:00")


def test_durations_read_like_a_clock():
    assert [clock(s) for s in (0.4, 61, 3661)] == ["0:00", "1:01", "1:01:01"]


def fill_the_disk_of(file: MetricsFile) -> None:
    """From now on every byte of it meets a full disk."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file._file.fileno())
    os.close(full)


def test_a_row_that_does_not_fit_on_the_disk_is_an_error_that_names_the_file(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    fill_the_disk_of(file)
    wanted = r"metrics.jsonl cannot be written: No space left on device; make room or repair that file system, then run"
    with pytest.raises(StorageError, match=wanted) as caught:
        file.write({"step": 1})
    assert caught.value.errno == 28
    with pytest.raises(StorageError, match=wanted):
        file.close()


@pytest.fixture
def full(tmp_path: Path):
    """A log on a full disk, and whether its display was closed."""
    closed: list[bool] = []
    log = RunLog(RunDirectory(tmp_path), 0, 9, 1, RankInfo("single"))
    assert log._outlets is not None
    metrics, _, display = log._outlets
    fill_the_disk_of(metrics)
    display.close = lambda: closed.append(True)  # type: ignore[method-assign]
    return log, closed


def test_a_full_disk_does_not_hide_what_went_wrong_first(full):
    log, closed = full
    log._outlets[0]._file.write("{}")
    with pytest.raises(KeyError), log:
        raise KeyError
    assert closed == [True]


def test_a_full_disk_at_the_end_is_told_and_the_terminal_is_left_as_it_was(full):
    log, closed = full
    log._outlets[0]._file.write("{}")
    with pytest.raises(StorageError, match=r"metrics.jsonl cannot be written"), log:
        pass
    assert closed == [True]


def test_an_attempt_that_goes_on_knows_how_many_steps_were_skipped_and_what_was_evaluated(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    events = [{"step": step, "event": "skipped"} for step in (1, 3, 7)] + [{"step": 4, "eval_loss": 2.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in events))
    assert before(path, 4) == (2, True)
    assert before(path, 3) == (2, False)
    assert before(tmp_path / "none", 4) == (0, False)
