"""`--batch-size auto`: as many sequences as fit a GPU's memory, found by steps of a model that is thrown away."""

import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from training.config import TrainConfig
from training.errors import InputError
from training.model import build_model
from training.optimizer import make_optimizer
from training.token_loss import token_loss

SHARE = 0.92
"""Of the GPU's free memory: DDP, an evaluation and what is torn by other sizes take some more."""
MULTIPLE = 8
"""Larger batches are multiples of this, which the kernels like."""


def largest_batch(peak: Callable[[int], float], room: float) -> int:
    """The most sequences whose step fits.

    Memory grows with their number by equal amounts, so a few steps tell the rest; the answer is tried.

    Args:
        peak: bytes at the highest moment of a step of so many sequences; infinite where it does not fit.
        room: bytes.

    Returns:
        0 where not even one fits.
    """
    if (one := peak(1)) > room:
        return 0
    # Memory is taken in pieces of many megabytes: from less growth than this nothing can be told.
    fits, few = 1, 2
    while (taken := peak(few)) - one < room / 64:
        fits, few = few, 2 * few
    if taken > room:
        return fits
    batch = _rounded(1 + int((room - one) * (few - 1) / (taken - one)))
    while peak(batch) > room:
        batch = _rounded(batch - max(1, batch // 16))
    return batch


def _rounded(batch: int) -> int:
    return batch // MULTIPLE * MULTIPLE if batch >= MULTIPLE else batch


def find_batch_size(
    config: TrainConfig,
    architecture: dict[str, Any],
    bfloat16: bool,
    device: torch.device,
    say: Callable[[str], None],
) -> int:
    """What fits this rank's GPU, for the training that the configuration asks for.

    Raises:
        InputError: there is no GPU, or not even one sequence fits.
    """
    if device.type != "cuda":
        raise InputError("--batch-size auto: it looks for what fits a GPU's memory, and there is none; give a number")
    free, _ = torch.cuda.mem_get_info(device)
    room = SHARE * (free + torch.cuda.memory_reserved(device))
    try:
        found = largest_batch(_memory_of_a_step(config, architecture, bfloat16, device), room)
    except torch.OutOfMemoryError:  # for the model alone
        found = 0
    if config.compile:
        torch._dynamo.reset()  # else the training would go on with what was compiled for any batch size
    gc.collect()  # the model is in a cycle of references
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    if not found:
        raise InputError(
            f"--batch-size auto: not even one sequence of {config.seq_length} tokens fits {room / 2**30:.1f} GiB, "
            f"which this GPU has; lower --seq-length, or share the model out by --strategy fsdp"
        )
    say(f"batch size: {found} sequences fit {room / 2**30:.1f} GiB, which this GPU has")
    return found


def _memory_of_a_step(
    config: TrainConfig, architecture: dict[str, Any], bfloat16: bool, device: torch.device
) -> Callable[[int], float]:
    """What `largest_batch` asks, answered by a model that goes with the answer."""
    with device:
        model = build_model(architecture, None)
    end_of_text = 0 if config.packing == "varlen" else None
    loss_of = token_loss(model, config.kernels, bfloat16, config.compile, False, device, end_of_text)
    optimizer = make_optimizer(model, config.weight_decay)

    def peak(batch: int) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            if not optimizer.state:  # what the first step leaves is there in all others
                make_step(loss_of, optimizer, 1, config.seq_length, device)
                torch.cuda.reset_peak_memory_stats(device)
            make_step(loss_of, optimizer, batch, config.seq_length, device)
        except torch.OutOfMemoryError:
            return math.inf
        return torch.cuda.max_memory_reserved(device)

    return peak


def make_step(
    loss_of: nn.Module, optimizer: torch.optim.Optimizer, batch: int, length: int, device: torch.device
) -> None:
    """All that a step of the training keeps in memory: activations, gradients, the optimizer's state."""
    loss_of.train()
    optimizer.zero_grad(set_to_none=False)  # with accumulation, and in DDP's buckets, they lie beside the activations
    loss_of(torch.zeros((batch, length), dtype=torch.int64, device=device)).backward()
    optimizer.step()
