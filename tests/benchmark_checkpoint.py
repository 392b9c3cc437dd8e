"""What a checkpoint costs the training: the time the step loop waits, beside a plain copy of the same bytes.

    python tests/benchmark_checkpoint.py [ROUNDS]

GPT-2 of 124 million parameters with AdamW's state. The copy goes to host memory that was used before, which is the
best case; from a GPU it is pinned. What is compared runs in turns, after one round that only warms up. Every save is
awaited before the next round. Printed are the median with the smallest and largest of the rounds.
"""

import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from training.optimizer import make_optimizer
from training.random_state import capture
from training.saver import Saver
from training.snapshot import expected_bytes

GOAL = 1.5


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def trained(device: torch.device) -> tuple[Any, torch.optim.Optimizer]:
    """GPT-2 with random weights, after one step of its optimizer."""
    model: Any = GPT2LMHeadModel(GPT2Config())
    model.to(device)
    optimizer = make_optimizer(model, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PlainCopy:
    """One piece of memory of that size on the device, copied to one on the host."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._device = device
        self._source = torch.ones(size, dtype=torch.uint8, device=device)
        self._target = torch.ones(size, dtype=torch.uint8, pin_memory=device.type == "cuda")

    def seconds(self) -> float:
        synchronise(self._device)
        begun = time.perf_counter()
        self._target.copy_(self._source, non_blocking=True)
        synchronise(self._device)
        return time.perf_counter() - begun


def measure(device: torch.device, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, optimizer = trained(device)
        saver = Saver(Path(folder), 1, 1, model, None, optimizer, device, keep=1)
        size = expected_bytes(model, optimizer)
        copy = PlainCopy(size, device)
        plain: list[float] = []
        blocking: list[float] = []
        whole: list[float] = []
        for number in range(rounds + 1):
            copied = copy.seconds()
            synchronise(device)
            begun = time.perf_counter()
            saver.save(number, 0, [capture(device)])
            waited = time.perf_counter() - begun
            saver.finish()
            if number:
                plain.append(copied)
                blocking.append(waited)
                whole.append(saver.reports()[-1].seconds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    ratios = [waited / copied for waited, copied in zip(blocking, plain, strict=True)]
    print(f"checkpoint of GPT-2 124M and AdamW's state, {size / 1e9:.2f} GB, on {name}, {rounds} rounds")
    print(f"plain copy   {spread(plain)} s   {size / 1e9 / sorted(plain)[rounds // 2]:.1f} GB/s")
    print(f"waited for   {spread(blocking)} s   {spread(ratios)} times the plain copy (goal: at most {GOAL})")
    print(f"until saved  {spread(whole)} s")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    if torch.cuda.is_available():
        measure(torch.device("cuda:0"), count)
    measure(torch.device("cpu"), count)
