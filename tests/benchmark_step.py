"""What each optimisation of the fused GPT-2 step gains: the speed with all of them over that without the one.

    python tests/benchmark_step.py [ROUNDS [SEQUENCES]]

GPT-2 with 124M parameters on one GPU, sequences of 1024 tokens (32, unless given), without dropout and CUDA graphs.
Each variant has a model of its own and does one thing the usual way, in PyTorch's own operations; all are measured in
one process in turns, after a round that only warms up. Printed are the median with the smallest and largest of the
rounds.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from benchmark_checkpoint import spread
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from training import gpt2_loss, loop
from training.bench import ours
from training.bench.options import SIZES
from training.bench.rounds import rotated
from training.bench.setting import Setting, synthetic_tokens
from training.device import device_name
from training.ranks import RankInfo

STEPS, LENGTH = 8, 1024


@dataclass(frozen=True)
class Replacement:
    """What a module's name stands for while a variant is built and makes its steps."""

    module: Any
    name: str
    by: Any

    def __call__(self) -> AbstractContextManager[Any]:
        return patch.object(self.module, self.name, self.by)


@dataclass
class Variant:
    """The step without one of its optimisations."""

    without: str
    changes: Sequence[Callable[[], AbstractContextManager[Any]]] = ()
    subject: ours.Ours = field(init=False)
    seconds: list[float] = field(default_factory=list)

    def run(self, action: Callable[[], None]) -> float:
        """Seconds that it took, with the variant's changes made."""
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change())
            torch.cuda.synchronize()
            begun = time.perf_counter()
            action()
            torch.cuda.synchronize()
            return time.perf_counter() - begun

    def build(self, setting: Setting) -> None:
        self.subject = ours.Ours(setting, "auto", compiled=False, cuda_graphs="off")

    def steps(self, count: int) -> None:
        self.subject.steps(count)


def function(replacement: Callable[..., Any]) -> Any:
    """In the place of an autograd function."""
    return SimpleNamespace(apply=replacement)


def rounded_weight_gradient(rows: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return (rows.t() @ grad).float()


def plain_add_norm(
    x: Any, delta: Any, bias: Any, weight: Any, shift: Any, eps: float, dropout: float, seed: Any
) -> Any:
    if delta is not None:
        x = x + functional.dropout(delta + bias.to(x.dtype), dropout)
    return x, functional.layer_norm(x.float(), x.shape[-1:], weight, shift, eps).to(x.dtype)


def plain_gelu(rows: Any, bias: Any) -> Any:
    return functional.gelu(rows + bias.to(rows.dtype), approximate="tanh")


def plain_heads(rows: Any, weight: Any, bias: Any, copy: Any, sizes: tuple[int, int, int]) -> Any:
    batch, length, heads = sizes
    packed = torch.addmm(bias.to(rows.dtype), rows, weight.to(rows.dtype))
    return [part.view(batch, length, heads, -1).transpose(1, 2) for part in packed.chunk(3, dim=-1)]


def plain_head_loss(rows: Any, table: Any, copy: Any, targets: Any, share: float, gradient: bool) -> Any:
    width = len(copy) - len(table)
    logits = rows @ functional.pad(table, (0, 0, 0, width)).to(rows.dtype).t()
    losses = functional.cross_entropy(logits[:, : len(table)].float(), targets, ignore_index=-1, reduction="sum")
    return losses * share


def waiting_step(wanted: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    if bool(wanted):
        optimizer.step()


def plain_optimizer(**options: Any) -> Callable[..., torch.optim.Optimizer]:
    def make(model: Any, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay, **options)

    return make


def unwatched_step(wanted: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()


def variants() -> list[Variant]:
    """All that are compared; the first has everything."""
    replace = Replacement
    return [
        Variant("nothing"),
        Variant("the vocabulary filled up to a multiple of 128", [replace(gpt2_loss, "VOCABULARY_MULTIPLE", 1)]),
        Variant(
            "cross entropy and its gradient in one kernel", [replace(gpt2_loss, "HeadLoss", function(plain_head_loss))]
        ),
        Variant(
            "bias, dropout, addition and norm in one kernel", [replace(gpt2_loss, "AddNorm", function(plain_add_norm))]
        ),
        Variant("bias and GELU in one kernel", [replace(gpt2_loss, "Gelu", function(plain_gelu))]),
        Variant(
            "the heads' gradients put side by side in one kernel",
            [replace(gpt2_loss, "QueryKeyValue", function(plain_heads))],
        ),
        Variant(
            "gradients that leave the products as float32",
            [replace(gpt2_loss, "weight_gradient", rounded_weight_gradient)],
        ),
        Variant("cuDNN's attention, but PyTorch's flash attention", [lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)]),
        Variant(
            "AdamW as one kernel, but by foreach",
            [replace(ours, "make_optimizer", plain_optimizer(foreach=True)), replace(loop, "step_if", unwatched_step)],
        ),
        Variant("a host that goes on during the update", [replace(loop, "step_if", waiting_step)]),
    ]


def measure(device: torch.device, rounds: int, sequences: int) -> None:
    size = SIZES["gpt2"]
    setting = Setting(
        size=size, batch_size=sequences, length=LENGTH, dropout=0.0, compiled=False, device=device,
        ranks=RankInfo.from_env({}), tokens=synthetic_tokens(size.vocabulary, 2**22, 0), seed=0,
    )  # fmt: skip
    compared = variants()
    for variant in compared:
        variant.run(partial(variant.build, setting))
    for number in range(rounds + 1):
        for variant in rotated(compared, number):
            variant.run(partial(variant.steps, 2))
            seconds = variant.run(partial(variant.steps, STEPS))
            if number:
                variant.seconds.append(seconds / STEPS)
    print(f"{sequences} × {LENGTH} tokens on {device_name(device)}, {rounds} rounds")
    for variant in compared:
        ratios = [one / own for one, own in zip(variant.seconds, compared[0].seconds, strict=True)]
        print(f"{variant.without:<56} {spread([1e3 * one for one in variant.seconds])} ms   {spread(ratios)}")
        variant.subject.close()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("the fused step needs a GPU, and there is none")
    measure(
        torch.device("cuda", 0),
        int(sys.argv[1]) if len(sys.argv) > 1 else 7,
        int(sys.argv[2]) if len(sys.argv) > 2 else 32,
    )
