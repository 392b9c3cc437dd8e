"""The newest checkpoint that is whole is found, whatever was done to newer ones, and everything comes back from it."""

import errno
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_training import CPU, TINY, find_fault, flip_a_bit, save, saver_of, tiny, unreadable
from training.checkpoint import Progress, load_optimizer, newest_checkpoint, restore_rng
from training.errors import InputError, StorageError
from training.incarnation import claim_incarnation
from training.manifest import read_manifest
from training.model import build_model
from training.optimizer import make_optimizer
from training.ranks import RankInfo

FILES = ["model.safetensors", "optimizer.safetensors", "rng.pt", "config.json", "tokenizer.json", "manifest.json"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 4 and 8; not to be changed."""
    folder = tmp_path_factory.mktemp("original")
    saver = saver_of(folder, *tiny())
    save(saver, 4)
    save(saver, 8)
    return folder


@pytest.fixture
def pair(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(original, tmp_path / "checkpoints")


def test_the_optimizers_state_and_the_progress_come_back(pair: Path):
    _, trained = tiny()
    newest = newest_checkpoint(pair, print)
    assert newest.folder == pair / "step-00000008"
    assert newest.done == Progress(8, 32)
    fresh = make_optimizer(build_model(TINY, None), 0.1)
    load_optimizer(newest.folder, fresh)
    before, after = trained.state_dict(), fresh.state_dict()
    assert [group["params"] for group in before["param_groups"]] == [group["params"] for group in after["param_groups"]]
    assert before["state"].keys() == after["state"].keys()
    for index, state in before["state"].items():
        assert all(torch.equal(value, after["state"][index][name]) for name, value in state.items())


def test_the_optimizer_keeps_the_options_that_it_was_made_with(pair: Path):
    fresh = make_optimizer(build_model(TINY, None), 0.5)
    options = [{**group, "params": None} for group in fresh.param_groups]
    load_optimizer(pair / "step-00000008", fresh)
    assert [{**group, "params": None} for group in fresh.param_groups] == options
    assert fresh.param_groups[0]["weight_decay"] == 0.5


def test_every_source_of_random_numbers_goes_on_where_it_was(tmp_path: Path):
    saver = saver_of(tmp_path, *tiny())
    folder = save(saver, 8)
    drawn = torch.rand(3), random.random(), np.random.normal()
    restore_rng(folder, RankInfo("single"), CPU)
    again = torch.rand(3), random.random(), np.random.normal()
    assert torch.equal(drawn[0], again[0])
    assert drawn[1:] == again[1:]


def test_the_random_state_of_another_number_of_ranks_is_left_alone(pair: Path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert not restore_rng(pair / "step-00000008", RankInfo("Open MPI", 1, 2, 1, 2), CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: flip_a_bit(folder / "model.safetensors"), r"model.safetensors has another hash"),
        (lambda folder: flip_a_bit(folder / "optimizer.safetensors"), r"optimizer.safetensors has another hash"),
        (lambda folder: (folder / "rng.pt").unlink(), r"rng.pt is missing"),
        (lambda folder: os.truncate(folder / "rng.pt", 10), r"rng.pt has 10 bytes instead of"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json: No such file"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest.json: Expecting"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), r"manifest.json: "),
    ],
)
def test_a_damaged_checkpoint_is_said_and_passed_over(pair: Path, damage, fault: str):
    damage(pair / "step-00000008")
    said: list[str] = []
    newest = newest_checkpoint(pair, said.append)
    assert newest.folder == pair / "step-00000004"
    assert newest.passed_over == ("step-00000008",)
    assert len(said) == 1
    assert fault in said[0]
    assert "step-00000008 is not whole" in said[0]


def test_fifty_flipped_bits_anywhere_are_each_found(pair: Path):
    folder = pair / "step-00000008"
    flips = np.random.default_rng(0)
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    # Ten in the manifest itself, the others wherever they fall.
    names = ["manifest.json"] * 10 + list(flips.choice(FILES, 40))
    for name in names:
        bit = int(flips.integers(8 * sizes[name]))
        flip_a_bit(folder / name, bit)
        assert find_fault(folder) is not None, f"bit {bit} of {name}"
        flip_a_bit(folder / name, bit)
    assert find_fault(folder) is None


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_ends_too_early_is_found(pair: Path, name: str):
    path = pair / "step-00000008" / name
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.9999):
        # 99.99 % of a small file would be the whole of it.
        path.write_bytes(whole[: min(int(len(whole) * share), len(whole) - 1)])
        assert find_fault(path.parent) is not None, share


@pytest.mark.parametrize("name", FILES)
def test_a_block_of_zeros_is_found(pair: Path, name: str):
    path = pair / "step-00000008" / name
    whole = path.read_bytes()
    block = slice(len(whole) // 4, len(whole) // 4 + 512)
    assert any(whole[block])
    path.write_bytes(whole[: block.start] + bytes(len(whole[block])) + whole[block.stop :])
    assert find_fault(path.parent) is not None


def test_where_every_checkpoint_is_damaged_nothing_starts_over_by_itself(pair: Path):
    (pair / "step-00000004" / "rng.pt").unlink()
    flip_a_bit(pair / "step-00000008" / "optimizer.safetensors")
    with pytest.raises(
        InputError,
        match=r"no checkpoint in .* can be resumed: step-00000008 is not whole \(optimizer.safetensors has another "
        r"hash.*\); step-00000004 is not whole \(rng.pt is missing\); delete that folder .* or choose another --exp",
    ):
        newest_checkpoint(pair, print)


def test_a_checkpoint_of_a_later_version_is_refused_and_not_passed_over(pair: Path):
    path = pair / "step-00000008" / "manifest.json"
    path.write_text(json.dumps({"format": 3, "made_by": "a later version"}))
    with pytest.raises(InputError, match=r"step-00000008 has format 3, and this version reads format 2: go on with"):
        newest_checkpoint(pair, print)


def test_a_checkpoint_of_an_earlier_version_is_refused(pair: Path):
    path = pair / "step-00000008" / "manifest.json"
    path.write_text(json.dumps({"format": 1, "step": 8, "samples": 32, "files": {}}))
    with pytest.raises(InputError, match=r"has format 1, and this version reads format 2"):
        newest_checkpoint(pair, print)


def test_a_flipped_bit_in_the_format_is_damage_and_no_later_version(pair: Path):
    path = pair / "step-00000008" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"format": 2', b'"format": 3'))
    assert newest_checkpoint(pair, print).folder == pair / "step-00000004"


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(pair: Path):
    (pair / "step-00000008").rename(pair / "step-00000009")
    said: list[str] = []
    assert newest_checkpoint(pair, said.append).folder == pair / "step-00000004"
    assert "step-00000009 is not whole (manifest.json is that of step 8)" in said[0]


def test_what_an_overtaken_attempt_made_is_ignored(pair: Path):
    claim_incarnation(pair, 0)
    claim_incarnation(pair, 4)  # The second start went on from step 4, so step 8 of the first came too late.
    said: list[str] = []
    assert newest_checkpoint(pair, said.append).folder == pair / "step-00000004"
    [line] = said
    assert line.endswith(
        "/step-00000008 was made by incarnation 1 after incarnation 2 had gone on from step 4: skipped"
    )


def test_what_was_made_before_a_later_start_went_on_counts(pair: Path):
    claim_incarnation(pair, 0)
    claim_incarnation(pair, 8)
    assert newest_checkpoint(pair, print).folder == pair / "step-00000008"
    assert read_manifest(pair / "step-00000008").incarnation == 1


def test_where_all_were_overtaken_training_begins_at_the_start(pair: Path):
    claim_incarnation(pair, 0)
    claim_incarnation(pair, 0)
    assert newest_checkpoint(pair, print).folder is None


def test_where_only_overtaken_ones_are_left_and_there_was_progress_nothing_starts_over(pair: Path):
    claim_incarnation(pair, 0)
    claim_incarnation(pair, 2)  # Of a checkpoint that is gone.
    with pytest.raises(
        InputError,
        match=r"no checkpoint in .* can be resumed: step-00000008 was made by incarnation 1 after incarnation 2 had "
        r"gone on from step 2; step-00000004 .*; delete that folder .* or choose another --experiment-name",
    ):
        newest_checkpoint(pair, print)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_a_file_that_cannot_be_read_now_is_no_damage(pair: Path, monkeypatch, name: str, number: int):
    unreadable(monkeypatch, pair / "step-00000008" / name, number)
    with pytest.raises(
        StorageError, match=rf"the checkpoints in .* cannot be read: .*{name}: {os.strerror(number)}; repair that file"
    ) as caught:
        newest_checkpoint(pair, pytest.fail)
    assert caught.value.errno == number


def test_without_any_checkpoint_there_is_none(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "none", print).folder is None
