"""The copy that a save is written from: what transformers would have written, and apart from the training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tiny_training import CPU, save, saver_of, tiny, train_on
from training.demo import demo_tokenizer
from training.optimizer import make_optimizer
from training.saver import Saver, small_files
from training.snapshot import HostBuffer, TensorFile, expected_bytes, model_file, optimizer_file, tensors_sha256

SMALL_MODELS = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 300},
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 300,
    },
    "qwen2": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 300,
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 2,
        "vocab_size": 300,
    },
}


def captured(*files: TensorFile) -> list[bytes]:
    return [host.header + bytes(host.data) for host in HostBuffer(CPU).capture(files)]


@pytest.mark.parametrize("family", SMALL_MODELS)
def test_the_folder_holds_what_save_pretrained_would_have_written(family: str, tmp_path: Path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL_MODELS[family]))
    model.save_pretrained(tmp_path / "theirs")
    for small in small_files(model, None):
        assert (tmp_path / "theirs" / small.name).read_bytes() == b"".join(small.parts)
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = load(captured(model_file(model))[0])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("family", SMALL_MODELS)
def test_a_model_loaded_from_a_checkpoint_has_the_same_weights_by_the_same_names(family: str, tmp_path: Path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL_MODELS[family]))
    saver = Saver(tmp_path, 1, 1, model, demo_tokenizer(), make_optimizer(model, 0.1), CPU)
    loaded = AutoModelForCausalLM.from_pretrained(save(saver, 1))
    first, second = HostBuffer(CPU), HostBuffer(CPU)
    before, after = first.capture([model_file(model)])[0], second.capture([model_file(loaded)])[0]
    assert tensors_sha256(before) == tensors_sha256(after)
    assert before.header == after.header


def test_a_checkpoint_is_a_model_folder_of_transformers(tmp_path: Path):
    model, optimizer = tiny()
    folder = save(saver_of(tmp_path, model, optimizer), 8)
    assert folder.name == "step-00000008"
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("a b")["input_ids"]) == "a b"


def test_tensors_of_every_size_and_type_come_back():
    torch.manual_seed(0)
    tensors = {
        "large": torch.randn(300, 400),
        "small": torch.randn(7),
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(5).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "long": torch.arange(9),
        "transposed": torch.randn(300, 400).t(),
    }
    back = load(captured(TensorFile("x", tensors, {}))[0])
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_what_is_captured_does_not_change_when_training_goes_on():
    model, optimizer = tiny()
    buffer = HostBuffer(CPU)
    files = buffer.capture([model_file(model), optimizer_file(optimizer)])
    before = [bytes(file.data) for file in files]
    train_on(model, optimizer)
    assert [bytes(file.data) for file in files] == before
    assert [bytes(file.data) for file in buffer.capture([model_file(model), optimizer_file(optimizer)])] != before


def test_the_memory_is_there_before_the_first_save_and_used_for_all():
    model, optimizer = tiny()
    fresh = make_optimizer(model, 0.1)
    buffer = HostBuffer(CPU)
    buffer.reserve(expected_bytes(model, fresh))
    address = buffer._bytes.data_ptr()
    for _ in range(2):
        buffer.capture([model_file(model), optimizer_file(optimizer)])
    assert buffer._bytes.data_ptr() == address


def test_the_hash_of_the_weights_depends_on_names_types_shapes_and_bytes_only():
    values = torch.arange(6.0)

    def hashed(**tensors: torch.Tensor) -> str:
        return tensors_sha256(HostBuffer(CPU).capture([TensorFile("x", tensors, {})])[0])

    assert hashed(a=values, b=values + 1) == hashed(b=values + 1, a=values)
    others = [
        hashed(a=values, c=values + 1),
        hashed(a=values, b=values),
        hashed(a=values.view(2, 3), b=values + 1),
        hashed(a=values.view(torch.int32), b=values + 1),
    ]
    assert len({hashed(a=values, b=values + 1), *others}) == 5


def test_the_optimizers_groups_stand_in_the_files_head():
    _, optimizer = tiny()
    content = captured(optimizer_file(optimizer))[0]
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert head["__metadata__"]["optimizer"] == "AdamW"
    assert json.loads(head["__metadata__"]["param_groups"])[0]["weight_decay"] == 0.1
