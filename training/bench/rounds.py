"""Who is compared, in turns: every subject is built and warmed up, then each round gives each of them a turn.

What changes with time (the clock of a hot GPU, other programs) so meets all subjects alike. Each round begins with
another subject.
"""

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist

from training.bench.limits import Limit, parameters, synchronise
from training.bench.options import ModelSize
from training.bench.setting import Setting, Subject
from training.errors import InputError, class_and_line
from training.process_group import gather

WARMUP_STEPS = 3
SETTLING_STEPS = 2
"""Steps of a turn before those that count: the memory that other subjects used is handed over in them."""
RESIDENT_SHARE = 0.25
"""Subjects whose weights and optimizers together take more of the GPU's memory wait for their turn in the host's."""
STATE_BYTES = 16
"""Of a parameter: weight, gradient and two moments in float32."""


@dataclass
class Turns:
    """A subject that is trained, and what was measured of it."""

    name: str
    batch_size: int
    subject: Subject | None = None
    failed: str | None = None
    """Why nothing was measured."""
    build_seconds: float | None = None
    first_step_seconds: float | None = None
    """The first step after it was built, compilation included."""
    step_seconds: float = 0.0
    """Of the steps after it, before any round: for planning alone."""
    parked: list[torch.Tensor] = field(default_factory=list)
    """What waits in the host's memory for the subject's next turn."""
    first_loss: float | None = None
    last_loss: float | None = None
    peak_memory_bytes: int | None = None
    """On a GPU: what its tensors took at most, those of the other subjects not counted."""
    graph_breaks: int | None = None
    """None where nothing is compiled."""
    graphs: int | None = None
    tokens_per_second: list[float] = field(default_factory=list)
    """Of one rank, by round."""


def build(name: str, setting: Setting, make: Callable[[Setting], Subject]) -> Turns:
    """Build a subject and warm it up; where it cannot be, the reason stands in its place."""
    turns = Turns(name, setting.batch_size)
    device = setting.device
    gpu = device.type == "cuda"
    counters = torch._dynamo.utils.counters
    counters.clear()
    synchronise(device)
    before = torch.cuda.memory_allocated(device) if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    reason = None
    try:
        begun = time.perf_counter()
        turns.subject = make(setting)
        synchronise(device)
        built = time.perf_counter()
        loss = turns.subject.steps(1)
        synchronise(device)
        turns.build_seconds, turns.first_step_seconds = built - begun, time.perf_counter() - built
        turns.first_loss = float(loss)
        begun = time.perf_counter()
        turns.last_loss = float(turns.subject.steps(WARMUP_STEPS))
        synchronise(device)
        turns.step_seconds = (time.perf_counter() - begun) / WARMUP_STEPS
        if gpu:
            turns.peak_memory_bytes = torch.cuda.max_memory_allocated(device) - before
        if graphs := counters["stats"]["unique_graphs"]:
            turns.graphs, turns.graph_breaks = graphs, sum(counters["graph_break"].values())
    except Exception as error:
        reason = reason_of(error, setting)
    _agree(turns, reason)
    return turns


def reason_of(error: Exception, setting: Setting) -> str:
    """An error as one line; one that other ranks may not have is raised: they wait in another collective."""
    if setting.ranks.world_size > 1 and not isinstance(error, InputError):
        raise error
    return str(error) if isinstance(error, InputError) else class_and_line(error)


def _agree(turns: Turns, reason: str | None) -> None:
    """What failed on one rank has failed."""
    turns.failed = next((told for told in gather(reason) if told is not None), None)
    if turns.failed is not None:
        free(turns)


def free(turns: Turns) -> None:
    """Let go of a subject and its memory."""
    if turns.subject is not None:
        turns.subject.close()
    turns.subject = None
    turns.parked.clear()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def take_turn(turns: Turns, steps: int, setting: Setting) -> None:
    """Make so many steps and note how fast they were."""
    assert turns.subject is not None
    reason = None
    try:
        turns.subject.steps(SETTLING_STEPS)
        _meet(setting.device)
        begun = time.perf_counter()
        loss = turns.subject.steps(steps)
        synchronise(setting.device)
        seconds = max(gather(time.perf_counter() - begun))
        turns.last_loss = float(loss)
        turns.tokens_per_second.append(steps * setting.step_tokens / seconds)
    except Exception as error:
        reason = reason_of(error, setting)
    _agree(turns, reason)


def measure_limit(limit: Limit, device: torch.device) -> float:
    """Work per second, of the slowest rank."""
    _meet(device)
    return limit.work / max(gather(limit.run()))


def _meet(device: torch.device) -> None:
    synchronise(device)
    if dist.is_initialized():
        dist.barrier()
        synchronise(device)


def must_park(subjects: int, size: ModelSize, device: torch.device) -> bool:
    """Whether so many models of that size would leave a single one too little of the GPU's memory."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return subjects * parameters(size) * STATE_BYTES > RESIDENT_SHARE * total


def park(turns: Turns) -> None:
    """Put a subject's weights and optimizer state into the host's memory, and let go of its gradients."""
    if turns.subject is None:
        return
    model, optimizer = turns.subject.model, turns.subject.optimizer
    optimizer.zero_grad(set_to_none=True)
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    turns.parked = [one for one in [*model.parameters(), *model.buffers(), *moments] if one.is_cuda]
    _move(turns.parked, torch.device("cpu"))
    torch.cuda.empty_cache()


def fetch(turns: Turns, device: torch.device) -> None:
    """Bring back what was parked, if it was."""
    _move(turns.parked, device)
    turns.parked = []


def _move(tensors: Iterable[torch.Tensor], device: torch.device) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.to(device)


def seconds_of_rounds(measured: Sequence[Turns], steps: int, rounds: int) -> float:
    """How long so many rounds will take, as far as the warm-up tells, if one more subject joins that is as slow as
    these on average."""
    known = [turns.step_seconds for turns in measured if turns.subject is not None]
    joined = sum(known) + (sum(known) / len(known) if known else 0.0)
    return rounds * (SETTLING_STEPS + steps) * joined


def rotated(items: list[Any], by: int) -> list[Any]:
    """The same order, begun elsewhere."""
    start = by % len(items) if items else 0
    return items[start:] + items[:start]
