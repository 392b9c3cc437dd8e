"""metrics.jsonl and the lines of a log."""

import json
from pathlib import Path

from training.display import Display, clock
from training.metrics import MetricsFile


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
