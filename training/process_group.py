"""The ranks as one group: the few things they do together besides training.

Every function here is called by all ranks at the same place of the program.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from training.errors import AgreedError, InputError, PeerError

T = TypeVar("T")


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_zero_first(step: Callable[[], T]) -> T:
    """Run `step` on rank 0 alone and return its result on every rank.

    For everything that must happen once or that must not be asked of a file server by every rank. The result
    travels pickled.

    Raises:
        AgreedError: rank 0 raised InputError; where there is a group, every rank raises this.
        PeerError: rank 0 raised something else (which rank 0 itself raises unchanged), so this rank stops
        too.
    """
    if not dist.is_initialized():
        return step()
    if dist.get_rank() == 0:
        try:
            outcome: list[Any] = ["ok", step()]
        except InputError as error:
            outcome = ["input", str(error)]
        except Exception as error:
            # The peers are told on a best-effort basis: the original error is what must come out of this
            # process.
            with suppress(Exception):
                dist.broadcast_object_list(["error", f"{type(error).__name__}: {error}"], src=0)
            raise
        dist.broadcast_object_list(outcome, src=0)
    else:
        outcome = [None, None]
        dist.broadcast_object_list(outcome, src=0)
    kind, value = outcome
    if kind == "input":
        raise AgreedError(value)
    if kind == "error":
        raise PeerError(f"rank 0 failed: {value}")
    return value


def on_every_rank(step: Callable[[], T]) -> T:
    """Run `step` on every rank; where it raises InputError on any, all raise that of the lowest such rank.

    Raises:
        AgreedError: with the rank and host that met it.
    """
    if not dist.is_initialized():
        return step()
    error: str | None = None
    result: T | None = None
    try:
        result = step()
    except InputError as met:
        error = f"rank {dist.get_rank()} on {socket.gethostname()}: {met}"
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    for met_error in errors:
        if met_error is not None:
            raise AgreedError(met_error)
    return result  # type: ignore[return-value]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of this tensor over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather(value: T) -> list[T]:
    """The value of every rank, in rank order, on every rank; the values travel pickled."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def my_rank() -> int:
    """This process's rank in the group; 0 where there is none."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks the group has; 1 where there is none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def any_rank(answer: bool, device: torch.device) -> bool:
    """Whether any rank says so."""
    return bool(sum_over_ranks(torch.tensor([float(answer)], device=device)).item())
