"""A checkpoint is whole or not there: whenever its maker is killed, whatever the disk does, whoever else writes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import ROOT, cannot_run_here
from tiny_training import find_fault, save, saver_of, tiny
from training import publish as module
from training.checkpoint import newest_checkpoint
from training.errors import InputError, StorageError, TakenOverError
from training.incarnation import claim_incarnation
from training.manifest import read_manifest
from training.publish import drop_unfinished
from training.retention import drop_superfluous


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "incarnations")


# ── killed ────────────────────────────────────────────────────────────────────────────────────────


def test_whenever_a_save_is_killed_a_whole_checkpoint_is_there_and_the_next_save_succeeds(tmp_path: Path):
    command = [sys.executable, str(ROOT / "tests/killed_savers.py"), str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(points) >= 30
    before = read_manifest(tmp_path / "original" / "step-00000004")
    after = read_manifest(tmp_path / "rehearsal" / "step-00000008")
    assert before.weights_sha256 != after.weights_sha256
    state = tiny()
    found = []
    for point in points:
        folder = tmp_path / point["folder"]
        newest = newest_checkpoint(folder, pytest.fail)
        assert newest.folder is not None, point
        found.append(newest.done.step)
        wanted = before if newest.done.step == 4 else after
        assert read_manifest(newest.folder).weights_sha256 == wanted.weights_sha256, point
        incarnation = claim_incarnation(folder, newest.done.step)
        drop_unfinished(folder, incarnation + 1)
        assert set(names(folder)) <= {"step-00000004", "step-00000008"}, point
        save(saver_of(folder, *state, incarnation=incarnation + 1, resumed_step=newest.done.step), 12)
        assert newest_checkpoint(folder, pytest.fail).done.step == 12, point
    # Before its rename nothing of a save is to be seen; after it the whole.
    assert found[:20] == [4] * 20
    assert found == sorted(found)
    assert 8 in found


# ── disks ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB and 64 inodes."""
    if os.geteuid() != 0:
        cannot_run_here("needs root, to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=64", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        cannot_run_here(f"needs to mount a small file system: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill_bytes(disk: Path) -> None:
    try:
        with (disk / "fill").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        return


def fill_inodes(disk: Path) -> None:
    (disk / "files").mkdir()
    try:
        for number in range(1000):
            (disk / "files" / str(number)).touch()
    except OSError:
        return


def empty(disk: Path) -> None:
    subprocess.run(["rm", "-rf", str(disk / "fill"), str(disk / "files")], check=True)


@pytest.mark.parametrize("fill", [fill_bytes, fill_inodes])
def test_on_a_full_disk_the_last_checkpoint_stays_and_the_error_says_what_to_do(small_disk: Path, fill):
    folder = small_disk / "checkpoints"
    saver = saver_of(folder, *tiny())
    save(saver, 4)
    fill(small_disk)
    saver.save(8, 32, [])
    with pytest.raises(
        StorageError,
        match=r"step 8 cannot be written \(the last one is that of step 4\): .*checkpoints.*: No space left on device; "
        r"make room or repair that file system, then run the same command again",
    ) as caught:
        saver.finish()
    assert caught.value.errno == 28
    assert names(folder) == ["step-00000004"]
    assert newest_checkpoint(folder, pytest.fail).done.step == 4
    empty(small_disk)
    save(saver, 9)
    assert newest_checkpoint(folder, pytest.fail).done.step == 9


@pytest.mark.parametrize("fill", [fill_bytes, fill_inodes])
def test_a_disk_without_room_for_one_checkpoint_is_refused_before_the_training(small_disk: Path, fill):
    saver = saver_of(small_disk / "checkpoints", *tiny())
    fill(small_disk)
    with pytest.raises(InputError, match=r"left and one checkpoint takes .*: (free space|remove files) there"):
        saver.check_room(evaluated=True)


def test_a_disk_that_became_read_only_is_named(small_disk: Path):
    folder = small_disk / "checkpoints"
    saver = saver_of(folder, *tiny())
    save(saver, 4)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    saver.save(8, 32, [])
    with pytest.raises(StorageError, match=r"\.step-00000008\.i000001: Read-only file system; make room or repair"):
        saver.finish()
    assert newest_checkpoint(folder, pytest.fail).done.step == 4


# ── leftovers ─────────────────────────────────────────────────────────────────────────────────────


def test_what_an_earlier_attempt_left_is_removed_and_what_another_is_writing_is_not(tmp_path: Path):
    for name in (
        ".step-00000008.i000001",
        ".step-00000008.old.i000001",
        ".step-00000008.123",
        ".step-00000004.i000000",
    ):
        (tmp_path / name).mkdir()
    for name in (".step-00000009.i000002", ".step-00000009.i000003"):
        (tmp_path / name).mkdir()
    drop_unfinished(tmp_path, incarnation=2)
    assert names(tmp_path) == [".step-00000009.i000002", ".step-00000009.i000003"]


# ── two attempts at once ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two(tmp_path: Path):
    """An attempt that has saved step 4, and a second one that has gone on from there while the first still runs."""
    state = tiny()
    first = saver_of(tmp_path, *state, incarnation=claim_incarnation(tmp_path, 0), keep=3)
    save(first, 4)
    second = saver_of(tmp_path, *tiny(1), incarnation=claim_incarnation(tmp_path, 4), resumed_step=4, keep=3)
    return first, second


def test_an_attempt_that_was_overtaken_no_longer_saves(two, tmp_path: Path):
    first, _ = two
    first.save(8, 32, [])
    with pytest.raises(
        TakenOverError,
        match=r"a newer attempt \(incarnation 2\) has taken over .*; this one, incarnation 1, must not save: leave it",
    ):
        first.finish()
    assert names(tmp_path) == ["step-00000004"]


def test_an_attempt_that_is_overtaken_while_it_writes_does_not_publish(tmp_path: Path, monkeypatch):
    saver = saver_of(tmp_path, *tiny(), incarnation=claim_incarnation(tmp_path, 0))
    write = module.write_all

    def overtake(descriptor: int, piece: memoryview) -> None:
        monkeypatch.setattr(module, "write_all", write)
        claim_incarnation(tmp_path, 0)
        drop_unfinished(tmp_path, 2)
        write(descriptor, piece)

    monkeypatch.setattr(module, "write_all", overtake)
    saver.save(8, 32, [])
    with pytest.raises(TakenOverError, match=r"a newer attempt \(incarnation 2\) has taken over"):
        saver.finish()
    assert names(tmp_path) == []


def test_an_attempt_that_was_overtaken_between_look_and_rename_does_not_say_that_it_saved(tmp_path: Path, monkeypatch):
    saver = saver_of(tmp_path, *tiny(), incarnation=claim_incarnation(tmp_path, 0))
    put_in_place = module._put_in_place

    def overtake(*arguments) -> None:
        claim_incarnation(tmp_path, 0)
        put_in_place(*arguments)

    monkeypatch.setattr(module, "_put_in_place", overtake)
    saver.save(8, 32, [])
    with pytest.raises(TakenOverError, match=r"a newer attempt \(incarnation 2\) has taken over"):
        saver.finish()
    assert newest_checkpoint(tmp_path, print).folder is None


@pytest.fixture
def too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look for a newer attempt comes a moment before that one begins, and nobody tidies up."""
    monkeypatch.setattr(module, "check_not_taken_over", lambda checkpoints, incarnation: None)
    monkeypatch.setattr("training.saver.drop_superfluous", lambda *arguments: None)


def test_what_is_published_after_a_look_that_came_too_early_is_ignored_and_dropped(two, tmp_path: Path, too_early):
    first, second = two
    save(first, 12)
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append).done.step == 4
    assert "step-00000012 was made by incarnation 1 after incarnation 2 had gone on from step 4: skipped" in said[0]
    save(second, 8)
    drop_superfluous(tmp_path, 3, 2, ())
    assert names(tmp_path) == ["step-00000004", "step-00000008"]


def test_the_newer_attempt_replaces_what_came_too_late(two, tmp_path: Path, too_early):
    first, second = two
    save(first, 8)
    folder = save(second, 8)
    manifest = read_manifest(folder)
    assert manifest.incarnation == 2
    assert find_fault(folder) is None


def test_a_late_rename_never_replaces_the_checkpoint_of_a_newer_attempt(two, tmp_path: Path, too_early):
    first, second = two
    folder = save(second, 8)
    first.save(8, 32, [])
    with pytest.raises(
        TakenOverError, match=r"a newer attempt \(incarnation 2\) has taken over and made .*step-00000008"
    ):
        first.finish()
    assert read_manifest(folder).incarnation == 2
    assert find_fault(folder) is None
    assert names(tmp_path) == ["step-00000004", "step-00000008"]


def test_a_rename_that_comes_between_look_and_rename_leaves_the_newer_one_in_place(
    two, tmp_path: Path, too_early, monkeypatch
):
    first, second = two
    rename = os.rename

    def second_is_faster(source, target):
        if Path(source).name.endswith(".i000001"):
            monkeypatch.setattr(os, "rename", rename)
            save(second, 8)
        return rename(source, target)

    monkeypatch.setattr(os, "rename", second_is_faster)
    first.save(8, 32, [])
    with pytest.raises(TakenOverError, match=r"has taken over and made"):
        first.finish()
    assert read_manifest(tmp_path / "step-00000008").incarnation == 2
    assert load_file(tmp_path / "step-00000008" / "model.safetensors")
    assert find_fault(tmp_path / "step-00000008") is None
