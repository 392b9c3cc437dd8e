"""Saving beside the training: what waits for what, and where an error comes out."""

import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tiny_training import CPU, save, saver_of, tiny, train_on
from training import saver as module
from training.checkpoint import newest_checkpoint
from training.errors import StorageError
from training.interval import Interval
from training.manifest import read_manifest
from training.random_state import capture
from waiting import wait_until


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch):
    """Holds every writer until it is opened."""
    opened = threading.Event()
    publish = module.publish

    def wait_and_publish(*arguments, **options):
        assert opened.wait(60)
        return publish(*arguments, **options)

    monkeypatch.setattr(module, "publish", wait_and_publish)
    yield opened
    opened.set()


def begin(saver, step: int) -> None:
    saver.save(step, step * 4, [capture(CPU)], train_seconds=step * 10.0)


def written(saver) -> bool:
    return not saver._flying.thread.is_alive()


def test_training_goes_on_while_the_checkpoint_is_written_and_does_not_change_it(tmp_path: Path, gate):
    model, optimizer = tiny()
    saver = saver_of(tmp_path, model, optimizer)
    weights = model.transformer.wte.weight.detach().clone()
    begin(saver, 8)
    train_on(model, optimizer)
    assert saver.step_made(1.0) == []
    assert newest_checkpoint(tmp_path, print).folder is None
    gate.set()
    saver.finish()
    saved = load_file(tmp_path / "step-00000008" / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(saved, weights)
    assert not torch.equal(saved, model.transformer.wte.weight)


def test_a_save_waits_for_the_one_before_and_says_so(tmp_path: Path, gate):
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        gate.set()

    saver = saver_of(tmp_path, *tiny(), say=say)
    begin(saver, 4)
    begin(saver, 8)
    saver.finish()
    assert len(said) == 1
    assert said[0].startswith("the checkpoint of step 8 waits for that of step 4, which is still being written: save")
    assert sorted(os.listdir(tmp_path)) == ["step-00000004", "step-00000008"]


def test_a_step_that_is_saved_already_is_not_saved_again(tmp_path: Path):
    saver = saver_of(tmp_path, *tiny())
    begin(saver, 4)
    begin(saver, 4)
    saver.finish()
    begin(saver, 4)
    saver.finish()
    assert [report.step for report in saver.reports()] == [4]


def test_what_is_on_disk_is_reported_once_with_its_seconds_and_bytes(tmp_path: Path):
    saver = saver_of(tmp_path, *tiny())
    begin(saver, 8)
    wait_until(lambda: written(saver))
    [report] = saver.step_made(0.1)
    assert saver.step_made(0.1) == []
    manifest = read_manifest(report.folder)
    assert report.bytes == manifest.bytes
    assert 0 < report.blocking_seconds <= report.seconds
    assert report.row() == {
        "step": 8,
        "checkpoint_seconds": pytest.approx(report.seconds, abs=1e-6),
        "checkpoint_blocking_seconds": pytest.approx(report.blocking_seconds, abs=1e-6),
        "checkpoint_bytes": report.bytes,
    }


def test_the_newest_step_on_disk_is_told_only_once_it_is_there(tmp_path: Path, gate):
    told: list[tuple[int, float]] = []
    saver = saver_of(tmp_path, *tiny(), resumed_step=4, on_saved=lambda *news: told.append(news))
    assert saver.saved_step == 4
    begin(saver, 8)
    saver.step_made(1.0)
    assert (saver.saved_step, told) == (4, [])
    gate.set()
    saver.finish()
    assert (saver.saved_step, told) == (8, [(8, 80.0)])


@pytest.mark.parametrize("then", ["step_made", "save", "finish"])
def test_an_error_of_the_writer_comes_out_of_the_next_call(tmp_path: Path, then: str):
    saver = saver_of(tmp_path / "checkpoints", *tiny())
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("a file in the way")
    begin(saver, 8)
    wait_until(lambda: written(saver))
    with pytest.raises(
        StorageError,
        match=r"the checkpoint of step 8 cannot be written \(there is none yet\): .*checkpoints.*: Not a directory; "
        r"make room or repair that file system, then run the same command again",
    ) as caught:
        {"step_made": lambda: saver.step_made(1.0), "save": lambda: begin(saver, 9), "finish": saver.finish}[then]()
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == 20


def test_a_checkpoint_counts_as_soon_as_it_is_in_place_whatever_comes_after(tmp_path: Path, monkeypatch):
    told: list[int] = []

    def fail(*arguments):
        assert told == [8]
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module, "drop_superfluous", fail)
    saver = saver_of(tmp_path, *tiny(), on_saved=lambda step, train_seconds: told.append(step))
    begin(saver, 8)
    with pytest.raises(OSError, match="Input/output error") as caught:
        saver.finish()
    assert "cannot be written" not in str(caught.value)
    assert saver.saved_step == 8
    assert [report.step for report in saver.reports()] == [8]


def test_what_a_save_waits_for_the_one_before_is_no_part_of_its_own_cost(tmp_path: Path, gate, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))

    def say(text: str) -> None:
        now[0] += 1000.0
        gate.set()

    saver = saver_of(tmp_path, *tiny(), say=say)
    begin(saver, 4)
    begin(saver, 8)
    saver.finish()
    assert saver._cost.seconds == 0.0
    assert saver._duration == 0.0
    assert [report.blocking_seconds for report in saver.reports()] == [0.0, 1000.0]


def test_none_is_due_while_one_is_being_written(tmp_path: Path, gate):
    saver = saver_of(tmp_path, *tiny(), interval=Interval(seconds=1e-9))
    assert saver.due(1)
    begin(saver, 1)
    assert not saver.due(2)
    gate.set()
    saver.finish()
    assert saver.due(2)


def test_two_runs_that_ended_alike_have_the_same_hash_of_weights(tmp_path: Path):
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        hashes.append(read_manifest(save(saver_of(tmp_path / name, *tiny(seed)), 8)).weights_sha256)
    assert hashes[0] == hashes[1] != hashes[2]
