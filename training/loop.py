"""The training loop: one optimizer step after another, each with its loss over all ranks and its times."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from training.process_group import gather, sum_over_ranks
from training.sampler import RankBatches
from training.schedule import learning_rate
from training.stop import StopRequest
from training.tokens import Blocks

PHASES = ("data", "forward", "backward", "update")


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, as every rank sees it; times and memory are this rank's."""

    step: int
    """Optimizer steps made, this one included."""
    loss: float
    """Mean over all ranks and accumulation steps, in nats per token."""
    lr: float
    grad_norm: float
    """Before clipping."""
    seconds: float
    phases: Mapping[str, float]
    """Seconds by phase."""
    stop: bool
    """Some rank was asked to save and stop; all ranks see the same answer at the same step."""
    save: bool = False
    """A checkpoint is due after this step; all ranks see the same answer."""


@dataclass(frozen=True)
class LoopPlan:
    """What the loop needs to know besides model and data."""

    done: int
    """Optimizer steps made before."""
    total: int
    """Optimizer steps of the whole run."""
    accumulation: int
    peak_lr: float
    lr_scheduler: Literal["cosine", "linear", "constant"]
    warmup: int
    max_grad_norm: float
    bfloat16: bool


def dropout_seed(seed: int, rank: int, step: int) -> int:
    """A seed of its own for each rank: with one for all, every rank would drop the same units."""
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_loader(blocks: Blocks, batches: RankBatches, workers: int, device: torch.device) -> DataLoader:
    """Batches of this rank: int64 tensors of shape [batch, tokens]."""
    return DataLoader(
        blocks,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        # A generator of its own: the loader draws a seed, and must not draw it from what dropout draws from.
        generator=torch.Generator().manual_seed(0),
    )


def _stack(rows: list[Any]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(row) for row in rows])


def autocast(device: torch.device, bfloat16: bool) -> AbstractContextManager[Any]:
    """bfloat16 for what gains from it, over weights that stay float32: pure bfloat16 weights lose small
    updates."""
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()


def train_steps(
    model: Any,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    plan: LoopPlan,
    stop: StopRequest,
    device: torch.device,
    save_is_due: Callable[[int], bool] = lambda step: False,
) -> Iterator[StepResult]:
    """Make the remaining optimizer steps, yielding after each.

    Args:
        model: returns an object with `loss` for `input_ids` and `labels`; wrapped in DDP where there are
        several ranks. optimizer: its learning rate is set here.
        loader: exactly the batches of the remaining steps.
        plan: the numbers.
        stop: read at each step, so that the ranks agree on it.
        device: where batches go.
        save_is_due: whether a checkpoint is to be made after the step of this number; asked on every rank, and
            what one rank wants all do: clocks differ.

    Raises:
        FloatingPointError: loss or gradient is not finite; raised before the update, naming step and ranks.
    """
    batches = iter(loader)
    for step in range(plan.done, plan.total):
        clock = PhaseClock(device)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        for part in range(plan.accumulation):
            with clock.phase("data"):
                batch = next(batches).to(device, non_blocking=True)
            synchronise = part + 1 == plan.accumulation
            with _no_sync(model) if not synchronise else nullcontext():
                with clock.phase("forward"), autocast(device, plan.bfloat16):
                    part_loss = model(input_ids=batch, labels=batch).loss / plan.accumulation
                with clock.phase("backward"):
                    part_loss.backward()
            loss += part_loss.detach().float()
        with clock.phase("update"):
            lr = learning_rate(step, plan.total, plan.warmup, plan.peak_lr, plan.lr_scheduler)
            for group in optimizer.param_groups:
                group["lr"] = lr
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm or math.inf)
            # One small message carries everything the ranks tell each other at a step.
            flags = torch.tensor([float(stop.requested), float(save_is_due(step + 1)), 1.0], device=device)
            loss_sum, stops, saves, ranks = sum_over_ranks(torch.cat([loss.reshape(1), flags])).tolist()
            mean_loss, grad_norm = loss_sum / ranks, float(norm)
            if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
                _refuse_update(step + 1, float(loss), grad_norm)
            optimizer.step()
        seconds, phases = clock.read()
        yield StepResult(step + 1, mean_loss, lr, grad_norm, seconds, phases, stops > 0, saves > 0)


def _no_sync(model: Any) -> AbstractContextManager[None]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _refuse_update(step: int, loss: float, grad_norm: float) -> None:
    guilty = [rank for rank, value in enumerate(gather(loss)) if not math.isfinite(value)]
    if guilty:
        ranks = ", ".join(map(str, guilty[:8])) + (" and more" if len(guilty) > 8 else "")
        raise FloatingPointError(
            f"the loss is not finite at step {step} on rank {ranks}; the weights were not updated: "
            f"lower --lr, raise --warmup-steps, or look at that rank's data"
        )
    raise FloatingPointError(
        f"the gradient's norm is {grad_norm} at step {step}; the weights were not updated: "
        f"lower --lr or raise --warmup-steps"
    )


def settle_buckets(model: Any, batch_size: int, length: int, bfloat16: bool, device: torch.device) -> None:
    """One forward and backward pass whose gradients are thrown away, before a resumed run's state is
    restored.

    DDP sorts its gradient buckets anew after its first iteration, and from three ranks on the order of a sum
    changes its last bits. A resumed run must sum in the order that the undisturbed run had by then.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    tokens = torch.zeros((batch_size, length), dtype=torch.int64, device=device)
    with autocast(device, bfloat16):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    model.zero_grad(set_to_none=True)


class PhaseClock:
    """Seconds by phase within one step. On a GPU they are measured between events, so that nothing waits for
    them."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start = time.perf_counter()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._events: list[tuple[str, Any, Any]] = []

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Adds the time of a `with` block to the phase."""
        return _Phase(self, name)

    def mark(self) -> Any:
        """Now: a moment of the processor's clock, or an event in the GPU's queue."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, begin: Any, end: Any) -> None:
        """Count what passed between two marks."""
        self._events.append((name, begin, end))

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds since the clock was made, and seconds by phase; waits for the GPU."""
        if self._cuda:
            torch.cuda.synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000 if self._cuda else end - begin
        return time.perf_counter() - self._start, self._seconds


class _Phase(AbstractContextManager[None]):
    def __init__(self, clock: PhaseClock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._begin = self._clock.mark()

    def __exit__(self, *error: object) -> None:
        self._clock.add(self._name, self._begin, self._clock.mark())
