"""What only a GPU can show: the fused step by its real kernels, in bfloat16, beside the model's own forward.

TRITON_INTERPRET=0 pytest tests/test_training_on_a_gpu.py
"""

import os
from typing import Any

import numpy as np
import pytest
import torch
from random_gpt2 import random_gpt2

from training.demo import demo_architecture
from training.heartbeat import Heartbeat
from training.loader import Loader
from training.loop import LoopPlan, StepResult, train_steps
from training.optimizer import make_optimizer
from training.packing import check_keeps_apart, within_documents
from training.passes import CallByCall, Captured, make_passes
from training.sampler import RankBatches, SampleOrder
from training.stop import StopRequest
from training.token_loss import TokenLoss, token_loss
from training.tokens import Blocks

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


def test_a_model_is_tried_for_keeping_documents_apart_where_it_is() -> None:
    check_keeps_apart(model())


def test_packed_documents_drop_out_attention_too() -> None:
    dropping = model()
    dropping.config.attn_pdrop = 0.5
    loss_of = token_loss(dropping, "fused", True, False, False, GPU, END)
    assert float(loss_of(tokens()).detach()) != float(loss_of(tokens()).detach())


def trained(graphs: str, accumulation: int) -> tuple[list[StepResult], Any, torch.Tensor]:
    """6 steps that drop out: their results, the model, and the state of the random numbers after them."""
    dropping = model()
    dropping.config.resid_pdrop = dropping.config.embd_pdrop = dropping.config.attn_pdrop = 0.1
    loss_of = token_loss(dropping, "fused", True, False, False, GPU)
    blocks = Blocks(np.random.default_rng(5).integers(0, 1000, 256 * 64).astype(np.uint16), 256)
    plan = LoopPlan(0, 6, accumulation, 1e-2, "constant", 0, 1.0)
    batches = RankBatches(SampleOrder(len(blocks), 0), 0, 1, 4, accumulation, 0, plan.total)
    optimizer, loader = make_optimizer(dropping, 0.1), Loader(blocks, batches, 0, GPU)
    passes = make_passes("on" if graphs == "on" else "off", loss_of, optimizer, accumulation, (4, 256), GPU)
    assert isinstance(passes, Captured if graphs == "on" else CallByCall)
    torch.cuda.manual_seed(7)
    results = []
    for result in train_steps(loss_of, optimizer, loader, plan, StopRequest(), GPU, Heartbeat(None), passes=passes):
        results.append(result)
        with torch.no_grad():
            loss_of.eval()(tokens())  # an evaluation in between changes nothing
        loss_of.train()
    return results, dropping, torch.cuda.get_rng_state()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_recorded_passes_come_to_the_same_bits_as_called_ones(
    accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        (called, one, state), (recorded, other, after) = trained("off", accumulation), trained("on", accumulation)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [result.loss for result in recorded] == [result.loss for result in called]
    assert [result.grad_norm for result in recorded] == [result.grad_norm for result in called]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(other.parameters(), one.parameters(), strict=True))
    assert torch.equal(state, after)
    assert called[-1].loss < called[0].loss
