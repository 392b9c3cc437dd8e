"""What a rank tells its watcher, and the accounting of its seconds."""

import json
import os
import subprocess
import sys
import threading
import time
from itertools import groupby
from pathlib import Path

import pytest
from test_training_train_llm import environment

from training.heartbeat import PHASES, SIZE, Heartbeat


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "beat"
    path.write_bytes(b" " * SIZE)
    return path


def read(path: Path) -> dict:
    content = path.read_bytes()
    assert len(content) == SIZE
    return json.loads(content)


def test_the_first_beat_is_there_as_soon_as_the_program_begins(file: Path):
    before = time.time()
    Heartbeat(str(file))
    beat = read(file)
    assert before <= beat.pop("time") <= time.time()
    seconds = beat.pop("seconds")
    assert set(seconds) == set(PHASES)
    assert beat == {
        "phase": "start",
        "step": 0,
        "at": "",
        "resumed_step": 0,
        "saved_step": None,
        "step_seconds": None,
        "busy_seconds": 0.0,
        "saved_train_seconds": 0.0,
    }


def test_every_second_of_the_process_belongs_to_one_phase(clock: Clock):
    heartbeat = Heartbeat(None, age=3.0, clock=clock)
    clock.now += 1
    heartbeat.enter("prepare")
    clock.now += 10
    heartbeat.enter("train")
    clock.now += 100
    with heartbeat.during("save"):
        clock.now += 1000
    clock.now += 0.5
    assert heartbeat.seconds() == {
        "start": 4,
        "prepare": 10,
        "compile": 0,
        "train": 100.5,
        "evaluate": 0,
        "save": 1000,
    }


def test_the_phase_before_comes_back_also_after_an_error(clock: Clock):
    heartbeat = Heartbeat(None, clock=clock)
    heartbeat.enter("train")
    with pytest.raises(KeyError), heartbeat.during("evaluate"):
        raise KeyError
    assert heartbeat.phase == "train"


def test_a_place_within_a_step_is_told_while_it_trains_and_only_then(file: Path):
    heartbeat = Heartbeat(str(file))
    heartbeat.enter("compile")
    heartbeat.at("forward")
    assert read(file)["at"] == ""
    heartbeat.enter("train")
    heartbeat.at("backward")
    assert read(file)["at"] == "backward"
    heartbeat.enter("save")
    assert (read(file)["phase"], read(file)["at"]) == ("save", "")


def test_what_would_be_lost_if_it_ended_now_is_the_training_since_the_state_was_captured(file: Path, clock: Clock):
    heartbeat = Heartbeat(str(file), clock=clock)
    heartbeat.resumed(4, saved=True)
    heartbeat.enter("train")
    clock.now += 5
    heartbeat.made_step(5, 5.0, 3.0)
    captured = heartbeat.seconds()["train"]
    clock.now += 2
    heartbeat.made_step(6, 2.0, 1.0)
    heartbeat.saved(5, captured)
    beat = read(file)
    assert (beat["resumed_step"], beat["step"], beat["saved_step"]) == (4, 6, 5)
    assert (beat["step_seconds"], beat["busy_seconds"]) == (2.0, 4.0)
    assert beat["seconds"]["train"] - beat["saved_train_seconds"] == 2.0


def test_an_older_checkpoint_that_is_published_late_does_not_replace_a_newer_one(file: Path):
    heartbeat = Heartbeat(str(file))
    heartbeat.saved(8, 2.0)
    heartbeat.saved(4, 1.0)
    assert (read(file)["saved_step"], read(file)["saved_train_seconds"]) == (8, 2.0)


def test_a_beat_that_another_thread_writes_is_not_older_than_the_one_before(file: Path, monkeypatch):
    heartbeat = Heartbeat(str(file))
    pwrite = os.pwrite
    entering = threading.Thread(target=heartbeat.enter, args=("save",))

    def interrupted(*arguments):
        monkeypatch.setattr(os, "pwrite", pwrite)
        entering.start()
        # It must wait for this one; without that it would end here.
        entering.join(0.5)
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", interrupted)
    heartbeat.saved(4, 1.0)
    entering.join()
    assert (read(file)["phase"], read(file)["saved_step"]) == ("save", 4)


def test_the_largest_numbers_fit_into_the_file(file: Path, clock: Clock):
    heartbeat = Heartbeat(str(file), age=1e9, clock=clock)
    heartbeat.resumed(10**12, saved=True)
    for phase in PHASES:
        heartbeat.enter(phase)
        clock.now += 123456789.123456
    heartbeat.made_step(10**12, 123456789.123456, 123456789.123456)
    heartbeat.saved(10**12, 123456789.123456)
    assert read(file)["saved_step"] == 10**12


@pytest.mark.parametrize("variables", [{}, {"CLUSTER_HEARTBEAT": "/nowhere/beat"}])
def test_without_a_launcher_or_its_file_nothing_is_written_and_nothing_fails(variables: dict[str, str]):
    heartbeat = Heartbeat.from_env(variables)
    heartbeat.enter("train")
    heartbeat.at("data")
    assert heartbeat.phase == "train"


def test_the_age_of_a_process_counts_from_its_start():
    program = "import time; time.sleep(0.3); from training.heartbeat import process_age; print(process_age())"
    began = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    # The kernel counts it in hundredths of a second.
    assert 0.28 < age < time.monotonic() - began + 0.02


def test_a_run_beats_through_its_phases_and_ends_with_the_last_step(file: Path, tmp_path: Path):
    # Each beat is also kept, so that none is missed.
    program = (
        "import os, sys; from training.train_llm import main\n"
        "pwrite = os.pwrite\n"
        "def kept(file, content, offset):\n"
        "    with open(sys.argv[1], 'ab') as all: all.write(content + b'\\n')\n"
        "    return pwrite(file, content, offset)\n"
        "os.pwrite = kept\n"
        "status = main(sys.argv[2:]); sys.stdout.flush(); os._exit(status)\n"
    )
    options = ["-e", "run", "--output-dir", str(tmp_path), "--preset", "smoke", "--max-steps", "3", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "beats"), *options, "--eval-freq", "2", "--ckpt-freq", "2"],
        capture_output=True,
        text=True,
        env=environment(CLUSTER_HEARTBEAT=str(file)),
    )
    assert done.returncode == 0, done.stderr
    beats = [json.loads(line) for line in (tmp_path / "beats").read_text().splitlines()]
    phases = [phase for phase, _ in groupby(beat["phase"] for beat in beats)]
    assert phases == ["start", "prepare", *["train", "evaluate", "train", "save"] * 2, "train", "evaluate"]
    assert [at for at, _ in groupby(beat["at"] for beat in beats) if at][:5] == PLACES
    last = read(file)
    assert (last["step"], last["saved_step"], last["resumed_step"]) == (3, 3, 0)
    assert 0 < last["busy_seconds"] < last["seconds"]["train"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seconds"] == pytest.approx(last["seconds"]["train"], abs=6e-4)
    assert last["saved_train_seconds"] <= last["seconds"]["train"] <= sum(last["seconds"].values())


def test_a_step_before_a_save_is_told_to_the_saver_before_that_save_begins(tmp_path: Path):
    program = (
        "import os, sys; from training.saver import Saver; from training.train_llm import main\n"
        "def told(name):\n"
        "    method = getattr(Saver, name)\n"
        "    def wrapper(*arguments, **options):\n"
        "        print('told', name)\n"
        "        return method(*arguments, **options)\n"
        "    setattr(Saver, name, wrapper)\n"
        "told('step_made'), told('save')\n"
        "status = main(sys.argv[1:]); sys.stdout.flush(); os._exit(status)\n"
    )
    options = ["-e", "run", "--output-dir", str(tmp_path), "--preset", "smoke", "--max-steps", "2", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options, "--seq-length", "32", "--ckpt-freq", "1"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    told = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("told")]
    assert told == ["step_made", "save", "step_made", "save"]


PLACES = ["data", "forward", "backward", "agree", "update"]
