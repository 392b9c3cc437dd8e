"""The training loop: one optimizer step after another, each with its loss over all ranks and its times."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.divergence import NotFinite
from training.heartbeat import Heartbeat
from training.loader import Loader
from training.optimizer import step_if
from training.passes import CallByCall, Passes
from training.process_group import gather, my_rank, sum_over_ranks, world_size
from training.rank_times import RankTimes, read_times, tell_time
from training.schedule import learning_rate
from training.stop import StopRequest
from training.strategy import clip_gradients, exchange_gradients, own_gradients_are_finite

PHASES = ("data", "forward", "backward", "agree", "update")
# What a rank does without waiting for any other: by this a slow rank can be told from those that wait for it.
BUSY = ("data", "forward")


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
    skipped: NotFinite | None = None
    """Why this step left the weights as they were, where it did."""
    rank_times: RankTimes | None = None
    """Of the step before, which every rank tells with this one's message; None at the first step of an attempt."""


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
    max_skipped: int = 0
    """Steps of the whole run whose update may be skipped because a number was not finite."""
    skipped: int = 0
    """Steps that were skipped before."""
    log_freq: int = 1
    """Steps between those whose times are kept, so that all ranks have their turn in them."""


def dropout_seed(seed: int, rank: int, step: int) -> int:
    """A seed of its own for each rank: with one for all, every rank would drop the same units."""
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def train_steps(
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    plan: LoopPlan,
    stop: StopRequest,
    device: torch.device,
    heartbeat: Heartbeat,
    save_is_due: Callable[[int], bool] = lambda step: False,
    passes: Passes | None = None,
) -> Iterator[StepResult]:
    """Make the remaining optimizer steps, yielding after each.

    Args:
        loss_of: a batch's loss, from `token_loss`; where there are several ranks, wrapped in DDP or over a model that
            FSDP has sharded.
        optimizer: its learning rate is set here.
        loader: exactly the batches of the remaining steps, on the device.
        plan: the numbers.
        stop: read at each step, so that the ranks agree on it.
        device: where the batches are.
        heartbeat: told what this rank does.
        save_is_due: whether a checkpoint is to be made after the step of this number; asked on every rank, and
            what one rank wants all do: clocks differ.
        passes: how the forward and backward passes are made; call by call, unless given.

    Raises:
        FloatingPointError: loss or gradient is not finite here, and no more steps may be skipped; raised
        before the update, naming step, ranks and their batches.
        PeerError: the same on a rank that did not cause it.
    """
    batches = iter(loader)
    skipped = plan.skipped
    clock: PhaseClock | None = None
    passes = passes or CallByCall(loss_of, optimizer, plan.accumulation)
    busy = 0.0
    first_part: torch.Tensor | None = None
    loss_of.train()
    for step in range(plan.done, plan.total):
        clock = PhaseClock(device, heartbeat.at, before=clock)
        passes.begin()
        loss = torch.zeros((), device=device)
        random_state = _random_state(device)
        parts: list[torch.Tensor] = []
        for _ in range(plan.accumulation):
            with clock.phase("data"):
                parts.append(next(batches) if first_part is None else first_part)
                first_part = None
            with clock.phase("forward"):
                loss += passes.forward(parts[-1])
            with clock.phase("backward"):
                passes.backward()
        with clock.phase("agree"):
            exchange_gradients(loss_of)
            lr = learning_rate(step, plan.total, plan.warmup, plan.peak_lr, plan.lr_scheduler)
            for group in optimizer.param_groups:
                group["lr"] = lr
            norm = clip_gradients(loss_of.parameters(), plan.max_grad_norm or math.inf)
            # One small message carries everything the ranks tell each other at a step, and comes to the host once.
            time_of_mine = tell_time(busy, step, my_rank(), world_size(), plan.log_freq)
            asked = to_device([float(stop.requested), float(save_is_due(step + 1)), 1.0, *time_of_mine], device)
            own_norm = norm.detach().float().reshape(1)
            told = sum_over_ranks(torch.cat([loss.reshape(1), own_norm, asked]))
        # After that phase's last mark: once the message is there, every event that the clock reads is over.
        message = Message(torch.cat([told, own_norm]))
        clock.goes_on_later()
        with clock.phase("update"):
            step_if(torch.isfinite(told[:2]).all(), optimizer)
        # In the shadow of the update: a GPU that has made it finds the next step's first tokens there.
        with clock.phase("data"):
            first_part = next(batches, None)
        heartbeat.at("agree")
        loss_sum, norms, stops, saves, ranks, *times, grad_norm = message.read()
        not_finite = None
        if not (math.isfinite(loss_sum) and math.isfinite(norms)):
            own_loss = float(loss)

            def gradient_is_finite(seen: Sequence[torch.Tensor] = parts, before: Any = random_state) -> bool:
                return _own_gradient_is_finite(loss_of, optimizer, seen, before, plan.accumulation, device)

            sequences = loader.batches.of_step(step - plan.done)
            not_finite = _who_is_not_finite(step + 1, own_loss, grad_norm, sequences, gradient_is_finite)
            if skipped >= plan.max_skipped:
                raise not_finite.error(my_rank(), skipped)
            skipped += 1
        seconds, phases = clock.read()
        busy = sum(phases[name] for name in BUSY)
        heartbeat.made_step(step + 1, seconds, busy)
        yield StepResult(
            step + 1,
            loss_sum / ranks,
            lr,
            grad_norm,
            seconds,
            phases,
            stops > 0,
            saves > 0,
            not_finite,
            rank_times=read_times(times, step, world_size(), plan.log_freq) if step > plan.done else None,
        )


def to_device(values: list[float], device: torch.device) -> torch.Tensor:
    """As a tensor there. From memory that is not pinned, a GPU would first have to end all that it has been given."""
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)


class Message:
    """Numbers on their way from a device to the host, which meanwhile gives the device more to do."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self._there: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def read(self) -> list[float]:
        """The numbers; waits until they are there, but for nothing that the device was given later."""
        if self._there is not None:
            self._there.synchronize()
        return self._values.tolist()


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _who_is_not_finite(
    step: int, loss: float, grad_norm: float, sequences: list[int], gradient_is_finite: Callable[[], bool]
) -> NotFinite:
    """Ask all ranks whose loss it is; where it is nobody's, whose own gradient. All ranks get the same answer."""
    reports = gather((math.isfinite(loss), sequences))
    guilty = {rank: read for rank, (finite, read) in enumerate(reports) if not finite}
    if guilty:
        return NotFinite(step, "loss", grad_norm, guilty)
    # The sum over the ranks has spread it to all of them, so each looks at its own part once more.
    reports = gather((len(reports) > 1 and gradient_is_finite(), sequences))
    return NotFinite(
        step, "gradient", grad_norm, {rank: read for rank, (finite, read) in enumerate(reports) if not finite}
    )


def _own_gradient_is_finite(
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[torch.Tensor],
    random_state: tuple[torch.Tensor, torch.Tensor | None],
    accumulation: int,
    device: torch.device,
) -> bool:
    """Compute a step's gradient again, without the other ranks and with the same dropout."""
    torch.set_rng_state(random_state[0])
    if random_state[1] is not None:
        torch.cuda.set_rng_state(random_state[1], device)
    optimizer.zero_grad(set_to_none=True)

    def backward() -> None:
        for part in parts:
            (loss_of(part) / accumulation).backward()

    return own_gradients_are_finite(loss_of, backward)


def settle_buckets(loss_of: nn.Module, batch_size: int, length: int, device: torch.device) -> None:
    """One forward and backward pass whose gradients are thrown away, before a resumed run's state is
    restored.

    DDP sorts its gradient buckets anew after its first iteration, and from three ranks on the order of a sum
    changes its last bits. A resumed run must sum in the order that the undisturbed run had by then.
    """
    if not isinstance(loss_of, DistributedDataParallel):
        return
    # A model that was loaded with its weights comes without dropout, and would not do what a step does.
    loss_of.train()
    loss_of(torch.zeros((batch_size, length), dtype=torch.int64, device=device)).backward()
    loss_of.zero_grad(set_to_none=True)


class PhaseClock:
    """Seconds by phase within one step. On a GPU they are measured between events, so that nothing waits for
    them."""

    def __init__(self, device: torch.device, tell: Callable[[str], None], before: "PhaseClock | None" = None) -> None:
        """`tell` is told each phase as it begins; `before` is the clock of the step before."""
        self._cuda = device.type == "cuda"
        self._tell = tell
        self._start = time.perf_counter()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._events: list[tuple[str, Any, Any]] = []
        self._later: list[tuple[str, Any, Any]] | None = None
        if before is not None and before._later is not None:
            self._events += before._later

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Adds the time of a `with` block to the phase."""
        self._tell(name)
        return _Phase(self, name)

    def goes_on_later(self) -> None:
        """A GPU still makes what follows in this step when the host goes on to the next, whose clock then reads it."""
        if self._cuda:
            self._later = []

    def mark(self) -> Any:
        """Now: a moment of the processor's clock, or an event in the GPU's queue."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, begin: Any, end: Any) -> None:
        """Count what passed between two marks."""
        (self._events if self._later is None else self._later).append((name, begin, end))

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds since the clock was made, and seconds by phase. On a GPU what goes on later is that of the step
        before, and all else is over."""
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
