"""Who is compared, in turns: every subject is built and warmed up, then each round gives each of them a turn.

What changes with time (the clock of a hot GPU, other programs) so meets all subjects alike. Each round begins with
another subject.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from training.bench.limits import Limit, synchronise
from training.bench.setting import Setting, Subject
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
    """Build a subject and warm it up; where it fails on any rank, the reason stands in its place."""
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
        turns.last_loss = float(turns.subject.steps(WARMUP_STEPS))
        synchronise(device)
        if gpu:
            turns.peak_memory_bytes = torch.cuda.max_memory_allocated(device) - before
        if graphs := counters["stats"]["unique_graphs"]:
            turns.graphs, turns.graph_breaks = graphs, sum(counters["graph_break"].values())
    except Exception as error:
        reason = first_line(error)
    _agree(turns, reason)
    return turns


def first_line(error: BaseException) -> str:
    """An error as one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
        reason = first_line(error)
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


def must_park(subjects: int, parameters: int, device: torch.device) -> bool:
    """Whether so many models of that size would leave a single one too little of the GPU's memory."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return subjects * parameters * STATE_BYTES > RESIDENT_SHARE * total


def move(subject: Subject, device: torch.device) -> None:
    """Move a subject's weights and optimizer state to the device; between steps it has no gradients."""
    for tensor in _tensors(subject.model, subject.optimizer):
        tensor.data = tensor.data.to(device)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    states: list[Mapping[str, Any]] = list(optimizer.state.values())
    moments = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return [*model.parameters(), *model.buffers(), *moments]


def rotated(items: list[Any], by: int) -> list[Any]:
    """The same order, begun elsewhere."""
    start = by % len(items) if items else 0
    return items[start:] + items[:start]
