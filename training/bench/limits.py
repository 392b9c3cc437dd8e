"""What the machine can do, whatever the program: the measures against which a training step is held.

All of them take random numbers: zeros make a GPU's products faster than any training could.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from training.bench.options import ModelSize
from training.bench.setting import Setting

MATRIX = "matrix product"
PRODUCTS = "products of a step"
COPY = "copy on the device"
ALL_REDUCE = "all-reduce of the gradients"
VOCABULARY_MULTIPLE = 128


@dataclass(frozen=True)
class Limit:
    """One thing to measure, again in each round."""

    name: str
    what: str
    """Its size in words."""
    unit: str
    """Of `work` per second."""
    work: float
    run: Callable[[], float]
    """Measure once; seconds."""


def limits(setting: Setting) -> list[Limit]:
    """The limits of this device, for one step of this model."""
    device, size = setting.device, setting.size
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    side = 8192 if gpu else 1024
    rows = setting.step_tokens
    products = layer_products(size)
    copied = 2**30 if gpu else 2**26
    found = [
        Limit(
            MATRIX,
            f"{side}³ {str(dtype).removeprefix('torch.')}",
            "FLOP/s",
            2.0 * side**3,
            lambda: matrix_seconds(side, 20 if gpu else 3, dtype, device),
        ),
        Limit(
            PRODUCTS,
            f"{rows} tokens, forward and backward",
            "FLOP/s",
            float(sum(3 * 2 * rows * width * outputs * times for width, outputs, times in products)),
            lambda: products_seconds(products, rows, dtype, device),
        ),
        Limit(
            COPY,
            f"{copied // 2**20} MiB, read and written",
            "byte/s",
            2.0 * copied,
            lambda: copy_seconds(copied, device),
        ),
    ]
    if setting.ranks.world_size > 1:
        gradients = parameters(size)
        found.append(
            Limit(
                ALL_REDUCE,
                f"{4 * gradients / 1e6:.0f} MB float32 over {setting.ranks.world_size} ranks",
                "byte/s",
                4.0 * gradients,
                lambda: all_reduce_seconds(gradients, device),
            )
        )
    return found


def parameters(size: ModelSize) -> int:
    """How many parameters GPT-2 of this size has, tied ones once."""
    width = size.width
    block = 12 * width**2 + 13 * width
    return (size.vocabulary + size.positions) * width + size.layers * block + 2 * width


def layer_products(size: ModelSize) -> list[tuple[int, int, int]]:
    """The linear layers of the model as (inputs, outputs, how many of them).

    The vocabulary is filled up to a multiple of 128, as a fast program would.
    """
    width = size.width
    vocabulary = -(-size.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return [
        (width, 3 * width, size.layers),
        (width, width, size.layers),
        (width, 4 * width, size.layers),
        (4 * width, width, size.layers),
        (width, vocabulary, 1),
    ]


def matrix_seconds(side: int, times: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one square product."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    result = torch.empty_like(left)

    def multiply() -> None:
        for _ in range(times):
            torch.mm(left, right, out=result)

    return _seconds(multiply, device) / times


def products_seconds(layers: list[tuple[int, int, int]], rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of these layers' products for so many rows: forward, and the two of the backward pass."""

    def multiply(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, times: int) -> None:
        # x and y stand for their gradients too, which have their shapes.
        for _ in range(times):
            torch.mm(x, weight.t())
            torch.mm(y, weight)
            torch.mm(y.t(), x)

    seconds = 0.0
    for inputs, outputs, times in layers:
        shapes = [(rows, inputs), (outputs, inputs), (rows, outputs)]
        x, weight, y = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
        seconds += _seconds(partial(multiply, x, weight, y, times), device)
    return seconds


def copy_seconds(size: int, device: torch.device) -> float:
    """Seconds of a copy of so many bytes."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _seconds(lambda: target.copy_(source), device)


def all_reduce_seconds(count: int, device: torch.device) -> float:
    """Seconds until so many float32 numbers are added up over all ranks."""
    values = torch.randn(count, device=device)
    return _seconds(lambda: dist.all_reduce(values), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The second time: the first one chooses kernels and opens connections."""
    work()
    synchronise(device)
    begun = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    """Wait for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
