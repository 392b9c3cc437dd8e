"""What is decided before the training starts."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tiny_training import save, saver_of, tiny
from training import start as module
from training.checkpoint import Progress, newest_checkpoint
from training.config import TrainConfig
from training.errors import InputError, StorageError
from training.incarnation import claim_incarnation, newest_incarnation, read_claims
from training.start import check_not_fewer, claim_newest


def test_fewer_steps_or_epochs_than_are_done_are_refused_with_both_numbers():
    with pytest.raises(InputError, match=r"--max-steps 3, but 27 are done: .* or choose another --experiment-name"):
        check_not_fewer(TrainConfig(max_steps=3), 100, Progress(27, 270))
    with pytest.raises(InputError, match=r"--num-epochs 1.5, but 2.7 are done \(27 steps\): .*--experiment-name"):
        check_not_fewer(TrainConfig(num_epochs=1.5), 100, Progress(27, 270))


@pytest.mark.parametrize(
    ("config", "done"),
    [
        (TrainConfig(max_steps=27), Progress(27, 270)),
        (TrainConfig(max_steps=27, num_epochs=0.1), Progress(27, 270)),
        (TrainConfig(num_epochs=2.7), Progress(27, 270)),
        (TrainConfig(num_epochs=0.01), Progress(1, 10)),
        (TrainConfig(num_epochs=0.01), Progress(0, 0)),
    ],
)
def test_what_is_done_may_be_asked_again(config: TrainConfig, done: Progress):
    check_not_fewer(config, 100, done)


def test_a_start_whose_checkpoint_is_removed_before_its_claim_goes_on_from_the_newer_one(tmp_path: Path):
    first = saver_of(tmp_path, *tiny(), incarnation=claim_incarnation(tmp_path, 0), keep=1)
    save(first, 10)
    found = newest_checkpoint(tmp_path, print)
    save(first, 20)
    newest, incarnation = claim_newest(tmp_path, found, print)
    assert (newest.folder, newest.done.step) == (tmp_path / "step-00000020", 20)
    claims = [(claim.incarnation, claim.resumed_step) for claim in read_claims(tmp_path)]
    assert claims == [(1, 0), (incarnation, 20)]
    assert newest_checkpoint(tmp_path, print).done.step == 20


def test_a_start_that_finds_its_checkpoint_as_it_was_claims_once(tmp_path: Path):
    save(saver_of(tmp_path, *tiny(), incarnation=claim_incarnation(tmp_path, 0)), 10)
    found = newest_checkpoint(tmp_path, print)
    assert claim_newest(tmp_path, found, print) == (found, 2)


def test_a_checkpoint_whose_held_out_loss_is_no_number_is_known_again(tmp_path: Path):
    save(saver_of(tmp_path, *tiny()), 10, loss=math.nan)
    found = newest_checkpoint(tmp_path, print)
    assert found.manifest is not None
    assert replace(found, manifest=replace(found.manifest, held_out_loss=float("nan"))).is_still_there()


def test_a_start_that_cannot_look_again_overtakes_nothing(tmp_path: Path, monkeypatch):
    first = saver_of(tmp_path, *tiny(), incarnation=claim_incarnation(tmp_path, 0), keep=1)
    save(first, 10)
    found = newest_checkpoint(tmp_path, print)
    save(first, 20)

    def fail(*arguments, **options):
        raise StorageError("stale")

    monkeypatch.setattr(module, "newest_checkpoint", fail)
    with pytest.raises(StorageError, match="stale"):
        claim_newest(tmp_path, found, print)
    assert newest_checkpoint(tmp_path, print).done.step == 20


def test_a_start_that_is_killed_while_it_looks_again_overtakes_nothing(tmp_path: Path, monkeypatch):
    first = saver_of(tmp_path, *tiny(), incarnation=claim_incarnation(tmp_path, 0), keep=1)
    save(first, 10)
    found = newest_checkpoint(tmp_path, print)
    save(first, 20)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(module, "newest_checkpoint", lambda *given, **more: os.kill(os.getpid(), signal.SIGKILL))
        claim_newest(tmp_path, found, print)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert newest_incarnation(tmp_path) == 2
    assert newest_checkpoint(tmp_path, print).done.step == 20
    with pytest.raises(StorageError, match="a newer attempt"):
        save(first, 30)
