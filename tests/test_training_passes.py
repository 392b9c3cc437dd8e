"""Which passes are recorded, and that called ones leave the exchange to a step's last part. What recorded ones compute
is compared on a GPU (tests/test_training_on_a_gpu.py)."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from random_gpt2 import random_gpt2
from torch.nn.parallel import DistributedDataParallel

from training.demo import demo_architecture
from training.errors import InputError
from training.gpt2_loss import GPT2Loss
from training.optimizer import make_optimizer
from training.passes import CallByCall, make_passes, misfit
from training.token_loss import TokenLoss

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Any:
    return random_gpt2(demo_architecture())


def gradient(model: Any) -> Any:
    return model.transformer.wte.weight.grad


def test_the_fused_step_can_be_recorded_on_a_gpu(model: Any) -> None:
    assert misfit(GPT2Loss(model), GPU) is None


def test_what_cannot_be_recorded_says_why(model: Any) -> None:
    assert misfit(GPT2Loss(model), CPU) == "there is no GPU"
    assert "--ddp-overlap off" in str(misfit(Mock(spec=DistributedDataParallel), GPU))
    assert "fused kernels" in str(misfit(TokenLoss(model, bfloat16=True), GPU))
    assert "--packing varlen" in str(misfit(GPT2Loss(model, end_of_text=0), GPU))


def test_recording_that_is_insisted_on_and_impossible_is_an_error(model: Any) -> None:
    loss_of, optimizer = TokenLoss(model, bfloat16=False), make_optimizer(model, 0.0)
    with pytest.raises(InputError, match="--cuda-graphs on: there is no GPU; leave the option out"):
        make_passes("on", loss_of, optimizer, 1, (2, 32), CPU)
    assert isinstance(make_passes("auto", loss_of, optimizer, 1, (2, 32), CPU), CallByCall)


def test_the_parts_of_a_step_add_up_to_its_mean(model: Any) -> None:
    loss_of = TokenLoss(model, bfloat16=False)
    passes = make_passes("off", loss_of, make_optimizer(model, 0.0), 2, (2, 32), CPU)
    parts = torch.arange(4 * 32).view(4, 32) % 11
    passes.begin()
    losses = []
    for part in parts.split(2):
        losses.append(float(passes.forward(part)))
        passes.backward()
    summed = gradient(model).clone()
    passes.begin()
    assert gradient(model) is None
    whole = loss_of(parts)
    whole.backward()
    assert sum(losses) == pytest.approx(float(whole.detach()), rel=1e-5)
    assert torch.allclose(summed, gradient(model), atol=1e-6)
