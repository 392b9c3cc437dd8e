"""Documents that share a sequence are trained on as if each stood alone (`--packing varlen`)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_gpt2 import random_gpt2, worst_difference
from torch.nn import functional
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from training.demo import demo_architecture
from training.errors import InputError
from training.packing import causal_mask_within, check_keeps_apart, document_bounds, document_starts, positions_from
from training.token_loss import TokenLoss

END = 0
ARCHITECTURE = demo_architecture() | {"n_embd": 60, "n_layer": 2, "n_head": 3, "n_positions": 20, "vocab_size": 300}
PACKED = torch.tensor([[5, 6, END, 7, 8, 9, 10, END], [END, 5, END, END, 9, 8, 7, 6]])
DOCUMENTS = [[[5, 6, END], [7, 8, 9, 10, END]], [[END], [5, END], [END], [9, 8, 7, 6]]]


def gpt2() -> Any:
    return random_gpt2(ARCHITECTURE)


def loss_of_documents_alone(model: Any) -> torch.Tensor:
    """Each goes through the model by itself; its last token predicts the first one of the next."""
    losses = []
    for sequence, documents in zip(PACKED, DOCUMENTS, strict=True):
        logits = torch.cat([model(input_ids=torch.tensor([one])).logits[0] for one in documents])
        losses.append(functional.cross_entropy(logits[:-1], sequence[1:]))
    return torch.stack(losses).mean()


def test_a_document_begins_after_the_end_of_another_and_at_the_beginning_of_a_sequence() -> None:
    starts = document_starts(PACKED, END)
    assert starts.tolist() == [[0, 0, 0, 3, 3, 3, 3, 3], [0, 1, 1, 3, 4, 4, 4, 4]]
    assert positions_from(starts).tolist() == [[0, 1, 2, 0, 1, 2, 3, 4], [0, 0, 1, 0, 0, 1, 2, 3]]


def test_documents_of_all_sequences_lie_one_behind_the_other() -> None:
    bounds = document_bounds(document_starts(PACKED, END))
    assert bounds.dtype == torch.int32
    assert bounds.tolist() == [0, 3, 8, 9, 11, 12, 16]


def test_a_token_sees_those_before_it_in_its_own_document() -> None:
    mask = causal_mask_within(document_starts(PACKED, END))
    assert mask.shape == (2, 1, 8, 8)
    assert mask[0, 0, 4].tolist() == [False, False, False, True, True, False, False, False]
    assert mask[1, 0, 1].tolist() == [False, True, False, False, False, False, False, False]


@pytest.mark.parametrize("kind", ["the model's own forward", "the fused kernels"])
def test_loss_and_gradients_are_those_of_each_document_alone(kind: str) -> None:
    model, alone = gpt2(), gpt2().double()
    if kind == "the fused kernels":
        fused = pytest.importorskip("training.gpt2_loss", reason="triton has no build for this machine")
        loss_of = fused.GPT2Loss(model, torch.float32, END)
    else:
        loss_of = TokenLoss(model, bfloat16=False, end_of_text=END)

    loss, expected = loss_of(PACKED), loss_of_documents_alone(alone)
    loss.backward()
    expected.backward()

    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert worst_difference(model, alone) < 1e-5


def test_accumulated_sequences_give_the_gradients_of_one_batch() -> None:
    model, whole = gpt2(), gpt2()
    for part in PACKED.chunk(2):
        (TokenLoss(model, False, END)(part) / 2).backward()
    TokenLoss(whole, False, END)(PACKED).backward()
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=32,
        )
    )  # fmt: skip


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=2))


@pytest.mark.parametrize("build", [gpt2, llama])
def test_models_that_can_keep_documents_apart_are_let_through_as_they_are(build: Callable[[], Any]) -> None:
    model = build().train()
    check_keeps_apart(model)
    assert model.training


def test_a_model_whose_attention_goes_across_documents_is_refused() -> None:
    with pytest.raises(InputError, match="--packing varlen: the attention of a bloom cannot be kept within documents"):
        check_keeps_apart(bloom())


def test_a_model_that_does_not_do_as_its_positions_say_is_refused() -> None:
    model = gpt2()
    forward = model.forward
    mask = torch.ones(2, 6, dtype=torch.int64)
    model.forward = lambda input_ids, position_ids, use_cache: forward(
        input_ids, attention_mask=mask, position_ids=position_ids
    )  # transformers takes a mask that is given for the whole truth
    with pytest.raises(InputError, match="cannot be kept within documents"):
        check_keeps_apart(model)
