"""Models by folder: with and without weights, and what is refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.config import TrainConfig
from training.demo import demo_architecture, demo_tokenizer
from training.errors import InputError
from training.model import build_model, check_predicts_next, find_model, load_tokenizer

TINY = demo_architecture() | {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model folder with configuration and tokenizer, without weights."""
    folder = tmp_path / "model"
    demo_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def config(folder: Path, **change) -> TrainConfig:
    return replace(TrainConfig(model_name=str(folder), seq_length=32), **change)


def test_a_folder_without_weights_starts_from_random_initialisation(bare: Path):
    source = find_model(config(bare))
    assert not source.pretrained
    assert source.architecture["n_embd"] == 16
    assert len(load_tokenizer(source)) == TINY["vocab_size"]


def test_a_folder_with_weights_starts_from_them_unless_it_is_told_not_to(bare: Path):
    torch.manual_seed(1)
    saved = build_model(TINY, None)
    saved.save_pretrained(bare)
    source = find_model(config(bare))
    assert source.pretrained
    loaded = build_model(source.architecture, source.folder)
    assert torch.equal(loaded.transformer.wte.weight, saved.transformer.wte.weight)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not find_model(config(bare, from_scratch=True)).pretrained
    assert find_model(config(bare, pretrained=True)).pretrained


def test_insisting_on_weights_that_are_not_there_is_an_error(bare: Path):
    with pytest.raises(InputError, match=r"--pretrained, but --model-name .* has no weights"):
        find_model(config(bare, pretrained=True))
    with pytest.raises(InputError, match=r"--pretrained, but --model-name demo has no weights"):
        find_model(TrainConfig(model_name="demo", pretrained=True, seq_length=32))


def test_weights_that_lack_a_tensor_are_refused_rather_than_filled_at_random(bare: Path):
    build_model(TINY, None).save_pretrained(bare)
    with pytest.raises(InputError, match=r"the weights in .* lack \d+ of the model's tensors"):
        build_model(TINY | {"n_layer": 2}, bare)


def test_a_sequence_longer_than_the_model_takes_is_refused_with_both_lengths(bare: Path):
    with pytest.raises(InputError, match=r"--seq-length 33: .* takes at most 32 tokens"):
        find_model(config(bare, seq_length=33))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config.json cannot be used"),
        ('{"model_type": "nonsense"}', r"config.json cannot be used"),
        ('{"model_type": "vit"}', r"vit is no causal language model"),
    ],
)
def test_a_folder_that_is_no_causal_language_model_is_refused(bare: Path, text: str, message: str):
    (bare / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        find_model(config(bare))


def test_a_folder_without_a_configuration_or_tokenizer_is_refused(bare: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"no config.json in"):
        find_model(config(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(InputError, match=r"no tokenizer in"):
        load_tokenizer(find_model(config(bare)))


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(bare: Path):
    (bare / "config.json").write_text(json.dumps(TINY | {"vocab_size": 100}))
    with pytest.raises(InputError, match=r"tokenizer has \d+ tokens and its configuration a vocab_size of 100"):
        load_tokenizer(find_model(config(bare)))


def test_a_path_that_is_not_there_is_no_hub_name():
    with pytest.raises(InputError, match=r"--model-name ../none: no such folder; give a local model folder"):
        find_model(TrainConfig(model_name="../none"))


def test_a_hub_name_without_a_network_says_what_to_give_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"--model-name nobody/none: .*hub cannot be reached.*--model-name demo"):
        find_model(TrainConfig(model_name="nobody/none"))
    assert os.listdir(tmp_path) == []


def test_packed_causal_attention_gives_what_the_models_own_gives():
    from training.attention import use_packed_causal_attention

    torch.manual_seed(0)
    model = build_model(TINY, None).eval()
    tokens = torch.randint(0, TINY["vocab_size"], (2, 16))
    with torch.no_grad():
        own = model(input_ids=tokens, labels=tokens).loss
        use_packed_causal_attention(model)
        assert torch.allclose(model(input_ids=tokens, labels=tokens).loss, own, atol=1e-5)


def small_model(kind: str):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "decoder_attention_heads": 2},
        "roberta": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        "llama": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=40, **sizes[kind]))


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_a_model_that_predicts_each_next_token_is_let_through(kind: str):
    check_predicts_next(small_model(kind))


@pytest.mark.parametrize("kind", ["bart", "roberta"])
def test_a_model_with_another_loss_or_that_sees_later_tokens_is_refused(kind: str):
    with pytest.raises(InputError, match=f"a {kind} does not predict each next token from those before it"):
        check_predicts_next(small_model(kind))
