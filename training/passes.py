"""A step's forward and backward passes: call by call, or recorded once as CUDA graphs and replayed.

A GPU that is given a few thousand tokens ends each kernel sooner than Python can ask for the next one. A graph asks for
all of a pass at once. It makes the same kernels in the same order, draws the same random numbers, and comes to the same
bits.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import InputError
from training.strategy import ExchangesAtEnd, without_reduction
from training.token_loss import TokenLoss

HOST_BOUND_TOKENS = 16 * 1024
"""Up to so many tokens in a pass its kernels are shorter than Python's way to them (tests/benchmark_passes.py)."""
WARMUP_PASSES = 2
"""Before a graph is recorded: kernels are compiled and libraries make their workspaces."""


class Passes(Protocol):
    """The passes of one step after another. Each part of a step is a `forward` and then a `backward`."""

    def begin(self) -> None:
        """A new step: there are no gradients yet."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The part's share of the step's loss: a scalar, good until the next part."""

    def backward(self) -> None:
        """Add the gradients of that share to those of the parts before."""


def make_passes(
    choice: Literal["auto", "on", "off"],
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    accumulation: int,
    tokens: int,
    device: torch.device,
) -> Passes:
    """By the option --cuda-graphs.

    Args:
        choice: `auto` records where that is possible and pays.
        loss_of: a batch's loss, as the loop gets it.
        optimizer: of all its parameters.
        accumulation: parts of a step.
        tokens: of one part.
        device: where they are.

    Raises:
        InputError: graphs are insisted on, and cannot be recorded.
    """
    why_not = misfit(loss_of, device)
    if choice == "on" and why_not is not None:
        raise InputError(f"--cuda-graphs on: {why_not}; leave the option out")
    if choice == "on" or (choice == "auto" and why_not is None and tokens <= HOST_BOUND_TOKENS):
        return Captured(loss_of, accumulation)
    return CallByCall(loss_of, optimizer, accumulation)


def misfit(loss_of: nn.Module, device: torch.device) -> str | None:
    """Why these passes cannot be recorded; None where they can."""
    if device.type != "cuda":
        return "there is no GPU"
    if isinstance(loss_of, DistributedDataParallel):
        return "DDP exchanges gradients during the backward pass; --ddp-overlap off does it after"
    inner: Any = loss_of.module if isinstance(loss_of, ExchangesAtEnd) else loss_of
    if isinstance(inner, TokenLoss):
        return "the step is not that of the fused kernels"
    return None if inner.capturable else "documents differ in length from batch to batch with --packing varlen"


class CallByCall:
    """As PyTorch does it by itself."""

    def __init__(self, loss_of: nn.Module, optimizer: torch.optim.Optimizer, accumulation: int) -> None:
        self._loss_of, self._optimizer, self._accumulation = loss_of, optimizer, accumulation
        self._part = 0
        self._loss: torch.Tensor

    def begin(self) -> None:
        """See `Passes`."""
        self._optimizer.zero_grad(set_to_none=True)
        self._part = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Passes`."""
        self._part += 1
        with self._reduction():
            self._loss = self._loss_of(tokens) / self._accumulation
        return self._loss.detach()

    def backward(self) -> None:
        """See `Passes`."""
        with self._reduction():
            self._loss.backward()

    def _reduction(self) -> AbstractContextManager[None]:
        """The ranks exchange gradients in the last part alone."""
        return nullcontext() if self._part == self._accumulation else without_reduction(self._loss_of)


class Captured:
    """CUDA graphs, recorded at the first batch: two for a step's first part, whose gradients take the place of those of
    the step before, and two for its other parts, whose gradients are added."""

    def __init__(self, loss_of: nn.Module, accumulation: int) -> None:
        self._loss_of, self._accumulation = loss_of, accumulation
        self._parameters = [parameter for parameter in loss_of.parameters() if parameter.requires_grad]
        self._gradients: list[torch.Tensor | None] = []
        self._graphs: list[_Graphs] = []
        self._part = 0

    def begin(self) -> None:
        """See `Passes`."""
        self._part = 0
        # Whoever looked at gradients in between may have put others in their place.
        for parameter, gradient in zip(self._parameters, self._gradients, strict=False):
            parameter.grad = gradient

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Passes`."""
        if not self._graphs:
            self._capture(tokens)
        graphs = self._graphs[min(self._part, 1)]
        self._part += 1
        graphs.tokens.copy_(tokens)
        graphs.forward.replay()
        return graphs.loss

    def backward(self) -> None:
        """See `Passes`."""
        self._graphs[min(self._part - 1, 1)].backward.replay()

    def _capture(self, tokens: torch.Tensor) -> None:
        """Record all graphs. Nothing is computed that stays, and no random number is used up."""
        state = torch.cuda.get_rng_state(tokens.device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUP_PASSES):
                self._loss_of(tokens).backward()
        torch.cuda.current_stream().wait_stream(aside)
        self._loss_of.zero_grad(set_to_none=True)
        mine, pool = tokens.clone(), torch.cuda.graph_pool_handle()
        for _ in range(min(self._accumulation, 2)):
            self._graphs.append(_Graphs(mine, lambda: self._loss_of(mine) / self._accumulation, pool, aside))
        self._gradients = [parameter.grad for parameter in self._parameters]
        torch.cuda.set_rng_state(state, tokens.device)


class _Graphs:
    """A forward pass over `tokens`, which may be overwritten, and its backward pass. Where the parameters have no
    gradients yet, they get them in memory of the graphs' own."""

    def __init__(self, tokens: torch.Tensor, run: Callable[[], torch.Tensor], pool: Any, stream: Any) -> None:
        self.tokens, self.forward, self.backward = tokens, torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # NCCL's watchdog, the loader and the saver are threads of their own, and may go on meanwhile.
        how = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self.forward, **how):
            loss = run()
        with torch.cuda.graph(self.backward, **how):
            loss.backward()
        self.loss = loss.detach()
