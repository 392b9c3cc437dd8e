"""What only a GPU can show: the fused step by its real kernels, in bfloat16, beside the model's own forward.

TRITON_INTERPRET=0 pytest tests/test_training_on_a_gpu.py
"""

import os
from typing import Any

import pytest
import torch
from random_gpt2 import random_gpt2

from training.demo import demo_architecture
from training.packing import within_documents
from training.token_loss import TokenLoss, token_loss

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1",
    reason="it needs a GPU, and TRITON_INTERPRET=0, so that the kernels run on it",
)

ARCHITECTURE = demo_architecture() | {"n_embd": 192, "n_layer": 3, "n_head": 3, "n_positions": 256, "vocab_size": 1000}
END = 0
GPU = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def model(heads: int = 3) -> Any:
    return random_gpt2(ARCHITECTURE | {"n_head": heads}).to(GPU)


def tokens() -> torch.Tensor:
    drawn = torch.randint(1, 1000, (4, 256), generator=torch.Generator().manual_seed(3))
    drawn[torch.rand(drawn.shape, generator=torch.Generator().manual_seed(4)) < 0.03] = END
    return drawn.to(GPU)


def distances(of: Any, exact: Any) -> list[float]:
    """Of each gradient, relative to its length."""
    return [
        float((one.grad.double() - other.grad).norm() / other.grad.norm())
        for one, other in zip(of.parameters(), exact.parameters(), strict=True)
    ]


@pytest.mark.parametrize("heads", [3, 16], ids=["heads of 64", "heads of 12, which flash attention does not take"])
@pytest.mark.parametrize("packing", ["concatenated", "varlen"])
def test_the_fused_step_is_as_near_to_float64_as_autocast_is(packing: str, heads: int) -> None:
    end_of_text = END if packing == "varlen" else None
    exact, autocast, fused = model(heads).double(), model(heads), model(heads)
    within = {} if end_of_text is None else within_documents(tokens(), end_of_text)
    expected = exact(input_ids=tokens(), labels=tokens(), **within).loss
    expected.backward()
    TokenLoss(autocast, bfloat16=True, end_of_text=end_of_text)(tokens()).backward()
    loss = token_loss(fused, "fused", True, False, False, GPU, end_of_text)(tokens())
    loss.backward()

    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=2e-3)
    for mine, theirs in zip(distances(fused, exact), distances(autocast, exact), strict=True):
        assert mine < max(2 * theirs, 0.02)


def test_packed_documents_drop_out_attention_too() -> None:
    dropping = model()
    dropping.config.attn_pdrop = 0.5
    loss_of = token_loss(dropping, "fused", True, False, False, GPU, END)
    assert float(loss_of(tokens()).detach()) != float(loss_of(tokens()).detach())
