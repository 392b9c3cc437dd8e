"""What is kept: the last ones and the best."""

import errno
import math
import os
from pathlib import Path

import pytest

from tiny_training import flip_a_bit, save, saver_of, tiny, unreadable
from training import retention as module
from training.checkpoint import newest_checkpoint
from training.incarnation import claim_incarnation
from training.manifest import read_manifest
from training.retention import Held, best_of, drop_superfluous, superfluous


def held(*losses: float | None, broken: tuple[int, ...] = ()) -> list[Held]:
    return [Held(Path(str(step)), step not in broken, loss) for step, loss in enumerate(losses)]


def dropped(held: list[Held], keep: int) -> list[int]:
    return [int(path.name) for path in superfluous(held, keep)]


def test_the_last_ones_are_kept():
    assert dropped(held(None, None, None, None), 2) == [0, 1]


def test_the_best_is_kept_besides():
    assert dropped(held(3.0, 1.0, 2.0, 2.5, 2.6), 2) == [0, 2]


def test_the_best_may_be_one_of_the_last():
    assert dropped(held(3.0, 2.0, 1.0), 2) == [0]


def test_of_equally_good_ones_the_latest_is_the_best():
    best = best_of(held(1.0, 1.0, 2.0))
    assert best is not None
    assert best.folder == Path("1")


def test_a_loss_that_is_no_number_is_not_the_best():
    assert dropped(held(math.nan, 3.0, None), 1) == [0]


def test_a_broken_one_is_not_counted_among_the_last_and_goes():
    assert dropped(held(None, None, None, None, broken=(2,)), 2) == [0, 2]


def test_the_only_whole_one_is_never_dropped():
    assert dropped(held(None, None, None, broken=(1, 2)), 1) == [1, 2]
    assert dropped(held(None, None, broken=(0, 1)), 1) == []


def test_a_run_keeps_two_and_its_best(tmp_path: Path):
    saver = saver_of(tmp_path, *tiny())
    for step, loss in ((2, 3.0), (4, 1.0), (6, 2.0), (8, None), (10, 1.5)):
        save(saver, step, loss)
    assert sorted(os.listdir(tmp_path)) == ["step-00000004", "step-00000008", "step-00000010"]


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path):
    state = tiny()
    first = saver_of(tmp_path, *state, incarnation=claim_incarnation(tmp_path, 0))
    save(first, 4)
    flip_a_bit(save(first, 8) / "model.safetensors")
    newest = newest_checkpoint(tmp_path, print)
    again = claim_incarnation(tmp_path, newest.done.step)
    second = saver_of(tmp_path, *state, incarnation=again, passed_over=newest.passed_over)
    save(second, 6)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000004", "step-00000006"]
    save(second, 8)
    assert newest_checkpoint(tmp_path, print).folder == tmp_path / "step-00000008"


def test_a_checkpoint_of_a_foreign_format_is_left_alone(tmp_path: Path):
    foreign = tmp_path / "step-00000001"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"format": 9}')
    saver = saver_of(tmp_path, *tiny())
    for step in (2, 4, 6):
        save(saver, step)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", "step-00000004", "step-00000006"]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Steps 4, 8 and 12 of the first start."""
    first = saver_of(tmp_path, *tiny(), incarnation=claim_incarnation(tmp_path, 0), keep=9)
    for step in (4, 8, 12):
        save(first, step)
    return tmp_path


def test_a_checkpoint_that_cannot_be_read_now_is_left_alone(three: Path, monkeypatch):
    unreadable(monkeypatch, three / "step-00000004" / "manifest.json", errno.EIO)
    drop_superfluous(three, 1, 1, ())
    assert steps(three) == [4, 12]


def test_claims_that_cannot_be_read_now_let_nothing_be_removed(three: Path, monkeypatch):
    unreadable(monkeypatch, three / "incarnations" / "000001.json", errno.ESTALE)
    drop_superfluous(three, 1, 1, ())
    assert steps(three) == [4, 8, 12]


def test_an_attempt_that_is_overtaken_after_its_look_removes_nothing(three: Path, monkeypatch):
    look = module.look

    def overtaken(*arguments):
        held = look(*arguments)
        claim_incarnation(three, 4)
        return held

    monkeypatch.setattr(module, "look", overtaken)
    monkeypatch.setattr(os, "rename", lambda source, target: pytest.fail(f"{source} was touched"))
    drop_superfluous(three, 1, 1, ())
    assert steps(three) == [4, 8, 12]


def test_an_attempt_that_is_overtaken_as_it_removes_one_puts_it_back(three: Path, monkeypatch):
    rename = os.rename

    def overtaken(source, target):
        monkeypatch.setattr(os, "rename", rename)
        claim_incarnation(three, 4)
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    drop_superfluous(three, 1, 1, ())
    assert steps(three) == [4, 8, 12]
    assert newest_checkpoint(three, print).done.step == 4


def test_a_checkpoint_of_a_newer_attempt_is_put_back_even_where_its_claim_is_not_seen_yet(three: Path, monkeypatch):
    state = tiny(1)
    rename = os.rename

    def replaced(source, target):
        monkeypatch.setattr(os, "rename", rename)
        save(saver_of(three, *state, incarnation=claim_incarnation(three, 4), resumed_step=4, keep=9), 8)
        rename(source, target)

    monkeypatch.setattr("training.saver.drop_superfluous", lambda *arguments: None)
    monkeypatch.setattr(module, "superfluous", lambda held, keep: [three / "step-00000008"])
    monkeypatch.setattr(module, "check_not_taken_over", lambda checkpoints, incarnation: None)
    monkeypatch.setattr(os, "rename", replaced)
    drop_superfluous(three, 1, 1, ())
    assert read_manifest(three / "step-00000008").incarnation == 2


def steps(checkpoints: Path) -> list[int]:
    return [int(path.name[5:]) for path in sorted(checkpoints.glob("step-*"))]
