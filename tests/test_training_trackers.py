"""Trackers: told what goes into metrics.jsonl, each step once, and never in the way of the training."""

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from training import check, trackers
from training.config import TrainConfig, config_from_argv
from training.errors import InputError
from training.ranks import RankInfo
from training.run_directory import RunDirectory
from training.run_log import RunLog
from training.trackers import Opened, Rows, Tracked, Trackers

# Whole runs in one process of their own: without a tracker; with one; and that one again from step 2 on, after the
# checkpoint of step 4 is lost.
RUNS = """
import shutil, sys
from training.train_llm import main
TRACKERS = {"tensorboard", "wandb", "trackio", "mlflow"}
tiny = ["--preset", "smoke", "--device", "cpu", "--output-dir", sys.argv[1], "--seq-length", "16", "--ckpt-freq", "2",
        "--lr-scheduler", "constant", "--warmup-steps", "0"]
assert main([*tiny, "-e", "plain", "--max-steps", "2"]) == 0
print("loaded", sorted(TRACKERS & set(sys.modules)))
assert main([*tiny, "-e", "told", "--max-steps", "4", "--report-to", "tensorboard"]) == 0
shutil.rmtree(sys.argv[1] + "/told/checkpoints/step-00000004")
assert main([*tiny, "-e", "told", "--max-steps", "6", "--report-to", "tensorboard"]) == 0
print("loaded", sorted(TRACKERS & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output directory of these runs, and what they printed."""
    output = tmp_path_factory.mktemp("outputs")
    done = subprocess.run([sys.executable, "-c", RUNS, str(output)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name, as TensorBoard shows them."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = events.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    names = accumulator.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in accumulator.Scalars(name)] for name in names}


def test_no_tracker_is_imported_unless_it_is_asked_for(runs: tuple[Path, str]):
    assert [line for line in runs[1].splitlines() if line.startswith("loaded")] == [
        "loaded []",
        "loaded ['tensorboard']",
    ]
    assert not (runs[0] / "plain/trackers").exists()


def test_tensorboard_shows_every_number_of_metrics_jsonl_once_also_after_steps_were_made_again(runs: tuple[Path, str]):
    run = runs[0] / "told"
    wanted: dict[str, list[tuple[int, Any]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "event" not in row:
            for name in row.keys() - {"step"}:
                wanted.setdefault(name, []).append((row["step"], pytest.approx(row[name], rel=1e-6)))

    shown = read_tensorboard(run / "trackers/tensorboard")

    assert [step for step, _ in shown["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in shown["eval_loss"]] == [6]
    # Of steps that were made again float32 holds the second numbers.
    assert shown == wanted


def test_tensorboard_has_the_options_once(runs: tuple[Path, str]):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = events.EventAccumulator(str(runs[0] / "told/trackers/tensorboard"))
    accumulator.Reload()
    [config] = accumulator.Tensors("config/text_summary")
    assert '"seq_length": 16' in config.tensor_proto.string_val[0].decode()


class Recorder:
    """A tracker that writes down what it is told."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.known: list[str | None] = []
        self.closed = threading.Event()

    def open(self, run: Tracked, known: str | None) -> Opened:
        self.known.append(known)
        return Opened(known or f"run {len(self.known)}", self.log, self.closed.set)

    def log(self, rows: Rows) -> None:
        self.rows += [(step, dict(values)) for step, values in rows]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(trackers, "OPENERS", {"wandb": made.open})
    return made


def tracked(tmp_path: Path, done: int = 0) -> Tracked:
    (tmp_path / "trackers").mkdir(exist_ok=True)
    return Tracked(tmp_path / "trackers", "a", {"lr": 0.1}, done)


def attempt(tmp_path: Path, done: int, steps: range) -> list[str]:
    """What an attempt that makes these steps tells a tracker, with an evaluation after each; the warnings."""
    told = Trackers(["wandb"], tracked(tmp_path, done))
    warnings = []
    for step in steps:
        warnings += told.tell({"step": step, "epoch": step / 9, "loss": 1.0})
        warnings += told.tell({"step": step, "eval_loss": 2.0})
    return warnings + told.close()


def test_an_attempt_that_goes_on_continues_the_same_run_and_tells_no_step_twice(recorder: Recorder, tmp_path: Path):
    attempt(tmp_path, 0, range(1, 5))
    attempt(tmp_path, 2, range(3, 7))
    assert recorder.known == [None, "run 1"]
    assert [step for step, values in recorder.rows if "loss" in values] == [1, 2, 3, 4, 5, 6]
    assert [step for step, values in recorder.rows if "eval_loss" in values] == [1, 2, 3, 4, 5, 6]


def test_an_attempt_that_begins_at_the_start_begins_a_new_run(recorder: Recorder, tmp_path: Path):
    attempt(tmp_path, 0, range(1, 3))
    attempt(tmp_path, 0, range(1, 3))
    assert recorder.known == [None, None]
    assert [step for step, values in recorder.rows if "loss" in values] == [1, 2, 1, 2]


def test_what_is_no_number_is_not_told(recorder: Recorder, tmp_path: Path):
    told = Trackers(["wandb"], tracked(tmp_path))
    told.tell({"step": 1, "loss": float("nan"), "lr": 0.1, "grad_norm": None})
    told.tell({"step": 2, "event": "resumed", "bit_exact": True})
    told.close()
    assert recorder.rows == [(1, {"lr": 0.1})]


def log_of(rank: int, tmp_path: Path, told: Trackers) -> None:
    """What a rank logs of four steps, each second of them in metrics.jsonl, and of an evaluation."""
    with RunLog(RunDirectory(tmp_path), 0, 4, 2, RankInfo("torchrun's variables", rank, 2), told) as log:
        for step in (1, 2, 3, 4):
            log.step({"step": step, "epoch": 0.1, "loss": 1.0, "lr": 0.1, "tokens_per_second": 1.0})
        log.evaluation(4, 2.0)


def test_the_first_rank_tells_each_row_that_it_writes(recorder: Recorder, tmp_path: Path):
    log_of(0, tmp_path, Trackers(["wandb"], tracked(tmp_path)))
    assert recorder.closed.is_set()
    assert [step for step, _ in recorder.rows] == [2, 4, 4]
    assert recorder.rows[-1][1]["eval_loss"] == 2.0


def test_the_other_ranks_tell_nothing(recorder: Recorder, tmp_path: Path):
    told = Trackers(["wandb"], tracked(tmp_path))
    log_of(1, tmp_path, told)
    told.close()
    assert recorder.rows == []


def broken(message: str) -> Callable[[Tracked, str | None], Opened]:
    def open_it(run: Tracked, known: str | None) -> Opened:
        def log(rows: Rows) -> None:
            raise ConnectionError(message)

        return Opened("x", log, lambda: None)

    return open_it


def test_a_tracker_that_fails_is_one_warning_and_the_others_are_told(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trackers, "OPENERS", {"mlflow": broken("no route\nto host"), "wandb": recorder.open})
    told = Trackers(["mlflow", "wandb"], tracked(tmp_path))
    warnings = told.tell({"step": 1, "loss": 1.0}) + told.close() + told.close()
    assert warnings == ["warning: --report-to mlflow: ConnectionError: no route; the training goes on without it"]
    assert recorder.rows == [(1, {"loss": 1.0})]


def wait(event: threading.Event) -> None:
    event.wait()


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    release = threading.Event()

    def hang(run: Tracked, known: str | None) -> Opened:
        release.wait()
        raise SystemExit(1)

    monkeypatch.setattr(trackers, "OPENERS", {"wandb": hang})
    monkeypatch.setattr(trackers, "WAITING_ROWS", 3)
    told = Trackers(["wandb"], tracked(tmp_path))
    warnings = [warning for step in range(1, 9) for warning in told.tell({"step": step, "loss": 1.0})]
    assert warnings == ["warning: --report-to wandb: it is 3 rows behind; the training goes on without it"]
    assert told.close(0.0) == []
    release.set()


def test_the_end_of_the_training_does_not_wait_for_a_tracker_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    release = threading.Event()

    def open_it(run: Tracked, known: str | None) -> Opened:
        return Opened("x", lambda rows: None, lambda: wait(release))

    monkeypatch.setattr(trackers, "OPENERS", {"wandb": open_it})
    told = Trackers(["wandb"], tracked(tmp_path))
    warning = "warning: --report-to wandb: it did not take its last rows in time; the training goes on without it"
    assert told.close(0.1) == [warning]
    release.set()


def test_a_second_ctrl_c_does_not_wait_for_the_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = Trackers([], tracked(tmp_path))
    monkeypatch.setattr(told, "close", lambda: pytest.fail("waited"))
    with (
        pytest.raises(KeyboardInterrupt),
        RunLog(RunDirectory(tmp_path), 0, 4, 2, RankInfo("torchrun's variables"), told),
    ):
        raise KeyboardInterrupt


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    argv = ["--preset", "smoke", "--output-dir", str(tmp_path / "out"), "--report-to", "wandb"]
    assert check.main(argv) == 64
    words = "error: --report-to wandb: the package is not installed: pip install wandb, or leave wandb out\n"
    assert capsys.readouterr().err == words
    assert not (tmp_path / "out").exists()


def test_several_trackers_may_be_named_on_the_command_line_and_in_the_file(tmp_path: Path):
    def parse(*argv: str) -> TrainConfig:
        return config_from_argv(argv, "train_llm")

    file = tmp_path / "run.toml"
    file.write_text('report_to = ["tensorboard", "mlflow"]\n')
    assert parse("--report-to", "wandb", "trackio", "--seed", "1").report_to == ("wandb", "trackio")
    assert parse("--config", str(file)).report_to == ("tensorboard", "mlflow")
    assert parse("--config", str(file), "--report-to", "none").report_to == ("none",)
    assert parse("--config", str(file)).to_json()["report_to"] == ["tensorboard", "mlflow"]
    file.write_text('report_to = "wandb"\n')
    assert parse("--config", str(file)).report_to == ("wandb",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('report_to = ["none", "wandb"]', "--report-to none wandb: none alone, or one or more names of trackers are"),
        ("report_to = []", "`report_to` = []: a name, or a list of names, is wanted"),
        ('report_to = ["comet"]', "invalid choice 'comet' for argument '--report-to'"),
    ],
)
def test_what_is_no_tracker_is_refused(content: str, message: str, tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text(content + "\n")
    with pytest.raises(InputError) as caught:
        config_from_argv(["--config", str(file)], "train_llm")
    assert message in str(caught.value)
