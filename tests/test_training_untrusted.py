"""Models and checkpoints of others carry nothing out: live malicious payloads, which would make a directory."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tiny_training import CPU, TINY, save, saver_of, tiny
from training.checkpoint import load_optimizer, newest_checkpoint, restore_rng
from training.config import TrainConfig
from training.demo import demo_tokenizer
from training.errors import InputError
from training.model import build_model, find_model, load_tokenizer
from training.ranks import RankInfo
from training.run_directory import RunDirectory, make_run_directory
from training.trained import load_for_use

REMOTE = """
import os
os.mkdir({executed!r})
from transformers import GPT2Config as Config, GPT2LMHeadModel as Model, GPT2TokenizerFast as Tokenizer
"""


class MakesDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def payloads(executed: Path, path: Path) -> list[bytes]:
    """The payload by pickle's own file, and by torch's."""
    torch.save({"wte.weight": MakesDirectory(executed)}, path)
    return [pickle.dumps(MakesDirectory(executed)), path.read_bytes()]


def test_the_payloads_work(executed: Path, tmp_path: Path):
    for content in payloads(executed, tmp_path / "x"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises((pickle.UnpicklingError, RuntimeError)):
            torch.load(tmp_path / "x", weights_only=True)
        assert not executed.exists()
    torch.load(tmp_path / "x", weights_only=False)
    executed.rmdir()
    pickle.loads(pickle.dumps(MakesDirectory(executed)))
    assert executed.is_dir()


@pytest.mark.parametrize("form", [0, 1], ids=["pickle", "torch"])
def test_a_checkpoint_carries_nothing_out(form: int, executed: Path, tmp_path: Path):
    model, optimizer = tiny()
    folder = save(saver_of(tmp_path / "checkpoints", model, optimizer), 4)
    content = payloads(executed, tmp_path / "x")[form]

    (folder / "rng.pt").write_bytes(content)
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        restore_rng(folder, RankInfo("single"), CPU)
    (folder / "optimizer.safetensors").write_bytes(content)
    with pytest.raises(SafetensorError):
        load_optimizer(folder, optimizer)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="manifest"):
        newest_checkpoint(tmp_path / "checkpoints", print)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_for_use(folder, CPU)

    assert not executed.exists()


@pytest.mark.parametrize("form", [0, 1], ids=["pickle", "torch"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_models_weights_carry_nothing_out(name: str, form: int, executed: Path, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_bytes(payloads(executed, tmp_path / "x")[form])

    with pytest.raises(InputError, match="cannot be loaded"):
        build_model(TINY, folder)

    assert not executed.exists()


def test_the_code_that_a_model_brings_is_not_run_and_no_question_asked(
    executed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = tmp_path / "model"
    demo_tokenizer().save_pretrained(folder)
    (folder / "remote.py").write_text(REMOTE.format(executed=str(executed)))
    brings = {"auto_map": {"AutoConfig": "remote.Config", "AutoModelForCausalLM": "remote.Model"}}
    request = TrainConfig(model_name=str(folder), seq_length=32)

    (folder / "config.json").write_text(json.dumps({**TINY, **brings, "model_type": "of-its-own"}))
    with pytest.raises(InputError, match="cannot be used"):
        find_model(request)

    (folder / "config.json").write_text(json.dumps({**TINY, **brings}))
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described |= {"auto_map": {"AutoTokenizer": ["remote.Tokenizer", "remote.Tokenizer"]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    source = find_model(request)
    build_model(source.architecture, None)
    load_tokenizer(source)
    assert not executed.exists()


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_run_directory_that_others_can_write_is_refused(mode: int, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    with pytest.raises(InputError, match="is no directory that this user alone can write"):
        make_run_directory(RunDirectory(tmp_path / "a"))


def test_a_run_directory_that_is_a_link_is_refused(tmp_path: Path):
    (tmp_path / "b").mkdir(mode=0o700)
    (tmp_path / "a").symlink_to("b")
    with pytest.raises(InputError, match="is no directory that this user alone can write"):
        make_run_directory(RunDirectory(tmp_path / "a"))
