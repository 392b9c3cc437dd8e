"""A step's forward and backward passes: call by call, or recorded once as CUDA graphs and replayed.

A GPU that is given a few thousand tokens ends each kernel sooner than Python can ask for the next one, and with more
it still waits a little between two. A graph asks for all of a pass at once. It makes the same kernels in the same
order, draws the same random numbers, and comes to the same bits.
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
    shape: tuple[int, int],
    device: torch.device,
) -> Passes:
    """By the option --cuda-graphs. Each rank may choose for itself: both ways come to the same bits.

    Args:
        choice: `auto` records where that is possible and there is memory for it.
        loss_of: a batch's loss, as the loop gets it.
        optimizer: of all its parameters.
        accumulation: parts of a step.
        shape: of one part's tokens: sequences, and tokens of each.
        device: where they are.

    Raises:
        InputError: graphs are insisted on, and cannot be recorded.
    """
    why_not = misfit(loss_of, device)
    if choice == "on" and why_not is not None:
        raise InputError(f"--cuda-graphs on: {why_not}; leave the option out")
    if choice == "off" or why_not is not None:
        return CallByCall(loss_of, optimizer, accumulation)
    tokens = torch.zeros(shape, dtype=torch.int64, device=device)
    random_state = torch.cuda.get_rng_state(device)
    loss_of.train()
    try:
        taken, room = warm_up(loss_of, tokens)
        # A graph keeps its memory for itself; an evaluation and the optimizer's state come beside it.
        if choice == "auto" and room < 2 * taken + 8 * sum(parameter.numel() for parameter in loss_of.parameters()):
            return CallByCall(loss_of, optimizer, accumulation)
        return Captured(loss_of, accumulation, tokens)
    finally:
        torch.cuda.set_rng_state(random_state, device)


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


def warm_up(loss_of: nn.Module, tokens: torch.Tensor) -> tuple[int, int]:
    """Passes whose gradients are thrown away: bytes that one takes at its highest moment, and bytes there are."""
    device = tokens.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARMUP_PASSES):
            loss_of(tokens).backward()
    torch.cuda.current_stream(device).wait_stream(aside)
    loss_of.zero_grad(set_to_none=True)
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.max_memory_allocated(device) - before, free + unused


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
    """CUDA graphs: two for a step's first part, whose gradients take the place of those of the step before, and two for
    its other parts, whose gradients are added."""

    def __init__(self, loss_of: nn.Module, accumulation: int, tokens: torch.Tensor) -> None:
        """Record them, over tokens of this shape; what `warm_up` does has been done."""
        self._parameters = [parameter for parameter in loss_of.parameters() if parameter.requires_grad]
        self._part = 0
        self._tokens = tokens
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(tokens.device)
        self._parts = [
            _Graphs(lambda: loss_of(tokens) / accumulation, pool, stream) for _ in range(min(accumulation, 2))
        ]
        self._gradients = [parameter.grad for parameter in self._parameters]

    def begin(self) -> None:
        """See `Passes`."""
        self._part = 0
        # Whoever looked at gradients in between may have put others in their place.
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Passes`."""
        self._tokens.copy_(tokens)
        self._part += 1
        self._graphs.forward.replay()
        return self._graphs.loss

    def backward(self) -> None:
        """See `Passes`."""
        self._graphs.backward.replay()

    @property
    def _graphs(self) -> "_Graphs":
        return self._parts[0 if self._part == 1 else -1]


class _Graphs:
    """A forward pass and its backward pass. Where the parameters have no gradients yet, they get them in memory of the
    graphs' own."""

    def __init__(self, run: Callable[[], torch.Tensor], pool: Any, stream: Any) -> None:
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # NCCL's watchdog, the loader and the saver are threads of their own, and may go on meanwhile.
        how = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self.forward, **how):
            loss = run()
        with torch.cuda.graph(self.backward, **how):
            loss.backward()
        self.loss = loss.detach()
