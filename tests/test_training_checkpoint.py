"""Checkpoints are whole or not there, and a damaged one is passed over."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.checkpoint import (
    Progress,
    drop_unfinished,
    find_fault,
    load_optimizer,
    newest_checkpoint,
    read_progress,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from training.demo import demo_architecture, demo_tokenizer
from training.errors import InputError
from training.model import build_model
from training.optimizer import make_optimizer
from training.ranks import RankInfo

CPU = torch.device("cpu")
TINY = demo_architecture() | {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}


@pytest.fixture
def trained():
    """A tiny model after one step of its optimizer."""
    torch.manual_seed(0)
    model = build_model(TINY, None)
    optimizer = make_optimizer(model, 0.1, CPU)
    tokens = torch.arange(16).view(1, 16)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    return model, optimizer


@pytest.fixture
def save(trained, tmp_path: Path):
    """Saves the tiny model as the checkpoint of a step."""
    return lambda step: save_checkpoint(
        tmp_path, Progress(step, step * 4), trained[0], demo_tokenizer(), trained[1], [rng_state(CPU)]
    )


def test_a_checkpoint_is_a_model_folder_of_transformers(save, trained):
    folder = save(8)
    assert folder.name == "step-00000008"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.transformer.wte.weight, trained[0].transformer.wte.weight)
    assert (
        AutoTokenizer.from_pretrained(folder).decode(AutoTokenizer.from_pretrained(folder)("a b")["input_ids"]) == "a b"
    )


def test_everything_comes_back(save, trained):
    folder = save(8)
    noise = torch.rand(3)
    fresh = make_optimizer(build_model(TINY, None), 0.1, CPU)
    load_optimizer(folder, fresh)
    before, after = trained[1].state_dict(), fresh.state_dict()
    assert torch.equal(before["state"][0]["exp_avg"], after["state"][0]["exp_avg"])
    assert read_progress(folder) == Progress(8, 32)
    restore_rng(folder, RankInfo("single"), CPU)
    assert torch.equal(torch.rand(3), noise)


def test_the_random_state_of_another_number_of_ranks_is_left_alone(save):
    folder = save(8)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    restore_rng(folder, RankInfo("Open MPI", 1, 2, 1, 2), CPU)
    assert torch.equal(torch.rand(3), expected)


def test_the_last_two_are_kept(save, tmp_path: Path):
    for step in (2, 4, 6, 8):
        save(step)
    assert sorted(os.listdir(tmp_path)) == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: flip_a_bit(folder / "model.safetensors"), r"model.safetensors has another hash"),
        (lambda folder: flip_a_bit(folder / "optimizer.pt"), r"optimizer.pt has another hash"),
        (lambda folder: (folder / "rng.pt").unlink(), r"rng.pt is missing"),
        (lambda folder: os.truncate(folder / "optimizer.pt", 10), r"optimizer.pt has 10 bytes instead of"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_said_and_passed_over(save, tmp_path: Path, damage, fault: str):
    good, bad = save(4), save(8)
    damage(bad)
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == good
    assert len(said) == 1
    assert fault in said[0]
    assert "step-00000008 is not whole" in said[0]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_where_every_checkpoint_is_damaged_nothing_starts_over_by_itself(save, tmp_path: Path):
    (save(4) / "rng.pt").unlink()
    flip_a_bit(save(8) / "optimizer.pt")
    with pytest.raises(
        InputError,
        match=r"no checkpoint in .* can be resumed: step-00000008 is not whole \(optimizer.pt has another hash.*\); "
        r"step-00000004 is not whole \(rng.pt is missing\); delete that folder .* or choose another --experiment-name",
    ):
        newest_checkpoint(tmp_path, print)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(save, tmp_path: Path):
    save(4)
    flip_a_bit(save(8) / "model.safetensors")
    save(6)
    assert sorted(os.listdir(tmp_path)) == ["step-00000004", "step-00000006"]
    assert find_fault(save(8)) is None


def test_what_a_dying_attempt_left_is_no_checkpoint_and_is_removed(save, tmp_path: Path):
    folder = save(4)
    (tmp_path / ".step-00000008.123").mkdir()
    assert newest_checkpoint(tmp_path, print) == folder
    drop_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ["step-00000004"]


def test_without_any_checkpoint_there_is_none(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "none", print) is None
