"""`--batch-size auto` finds the most sequences that fit, and a run that goes on keeps them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.batch_size import find_batch_size, largest_batch, make_step
from training.config import TrainConfig, config_from_argv
from training.demo import demo_architecture
from training.errors import InputError
from training.model import build_model
from training.optimizer import make_optimizer
from training.run_directory import RunDirectory, batch_size_before, make_run_directory, write_config
from training.token_loss import TokenLoss


def affine(base: float, each: float) -> Callable[[int], float]:
    return lambda batch: base + each * batch


@pytest.mark.parametrize(
    ("peak", "found"),
    [
        (affine(20, 2), 40),
        (affine(20, 1.9), 40),  # 42 would fit: a multiple of 8
        (affine(20, 20), 4),  # below 8 every number will do
        (affine(20, 79), 1),
        (affine(20, 90), 0),
        (affine(100, 0.001), 0),
        (lambda batch: math.inf if batch > 1 else 50, 1),
        (lambda batch: 20 + 2 * batch if batch < 30 else math.inf, 24),  # more at once than two small steps showed
        (lambda batch: 20 + 0.1 * batch**2, 24),
    ],
)
def test_the_largest_batch_that_fits_is_found(peak: Callable[[int], float], found: int) -> None:
    assert largest_batch(peak, room=100) == found
    assert found == 0 or peak(found) <= 100


def test_a_step_that_is_only_tried_leaves_gradients_and_optimizer_state_as_a_real_one_would() -> None:
    model = build_model(demo_architecture(), None)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = make_optimizer(model, 0.1)
    make_step(TokenLoss(model, bfloat16=False), optimizer, 2, 8, torch.device("cpu"))
    assert all(weight.grad is not None and len(optimizer.state[weight]) == 3 for weight in model.parameters())
    assert all(torch.equal(weight, old) for weight, old in zip(model.parameters(), before, strict=True))


def test_without_a_gpu_a_number_is_wanted() -> None:
    with pytest.raises(InputError, match=r"--batch-size auto: .* there is none; give a number"):
        find_batch_size(TrainConfig(batch_size="auto"), {}, False, torch.device("cpu"), print)


@pytest.mark.parametrize("other", ["--strategy=fsdp", "--device=cpu"])
def test_where_nothing_can_be_tried_a_number_is_wanted(other: str) -> None:
    with pytest.raises(InputError, match=r"--batch-size auto: not with .*; give a number"):
        config_from_argv(["--batch-size", "auto", other], "train_llm")


def test_a_run_that_goes_on_knows_its_batch_size(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert batch_size_before(run) is None
    make_run_directory(run)
    write_config(run, TrainConfig(batch_size=24), demo_architecture(), "fingerprint", 1)
    assert batch_size_before(run) is None  # nothing to go on from
    (run.checkpoints / "step-00000001").mkdir()
    assert batch_size_before(run) == 24
