"""The ranks as one group: joining it, and the few things they do together besides training.

Every function here is called by all ranks at the same place of the program.
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from training.errors import InputError, PeerError
from training.preflight import load_libraries, say_host
from training.ranks import RankInfo
from training.store import Server, Store

# Long enough for rank 0 to download and tokenise while the others wait for it.
TIMEOUT = timedelta(minutes=30)

T = TypeVar("T")


class Joining:
    """Joins the process group on the device that `choose` names, as far as that goes beside the imports.

    A thread waits for the other ranks, chooses the device and starts its libraries, while the main thread imports
    what the training needs later; then `finish` makes the group. (Not the thread: torch's function for it looks into
    modules that the main thread may just be importing.) A group of one rank is no group at all.

    The ranks tell each other through the store whether each has its device before any of them waits in a
    collective, so that one host without its GPUs ends the run in seconds, with the host named.
    """

    def __init__(self, ranks: RankInfo, choose: Callable[[], str]) -> None:
        """Begin. `choose` is called by the thread, and may raise InputError."""
        self._ranks, self._choose = ranks, choose
        self._store: Store | None = None
        self._device: torch.device | None = None
        self._error: BaseException | None = None
        # A daemon, so that a rank that cannot import does not wait for the others before it says so.
        self._thread = threading.Thread(target=self._meet, name="joining", daemon=True)
        self._thread.start()

    def finish(self) -> tuple[torch.device, Store | None]:
        """Make the group: this rank's device, and the store of the group where there is one.

        Raises:
            InputError: from `choose`, on whichever rank; every rank raises it.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        device = self._device
        assert device is not None
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has its own
        if self._store is not None:
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                rank=self._ranks.rank,
                world_size=self._ranks.world_size,
                store=dist.PrefixStore("training", self._store),
                timeout=TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )
        return device, self._store

    def _meet(self) -> None:
        try:
            if self._ranks.world_size == 1:
                self._device = torch.device(self._choose())
            else:
                self._store = _store_of_all(self._ranks)
                say_host(self._ranks, self._store)
                self._device = torch.device(_agreed_device(self._ranks, self._choose, self._store))
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            load_libraries(self._device)
        except BaseException as error:
            self._error = error


def _store_of_all(ranks: RankInfo) -> Store:
    """Where the ranks leave each other messages, once rank 0 listens."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), os.environ.get("CLUSTER_STORE_TOKEN", "")
    if ranks.rank == 0:
        Server(*place, alone=ranks.local_world_size == ranks.world_size)
    return Store(*place, TIMEOUT)


def _agreed_device(ranks: RankInfo, choose: Callable[[], str], store: Store) -> str:
    error: Exception | None = None
    device = ""
    try:
        device = choose()
        report = f"ok {device.split(':')[0]}"
    except InputError as met:
        error, report = met, f"rank {ranks.rank} on {socket.gethostname()}: {met}"
    store.set(f"device/{ranks.rank}", report)
    if ranks.rank == 0:
        reports = [store.get(f"device/{rank}").decode() for rank in range(ranks.world_size)]
        store.set("device/verdict", _verdict(reports))
    verdict = store.get("device/verdict").decode()
    if verdict != "ok":
        raise InputError(verdict) from error
    return device


def _verdict(reports: list[str]) -> str:
    for report in reports:
        if not report.startswith("ok "):
            return report
    for rank, report in enumerate(reports):
        if report != reports[0]:
            return (
                f"rank {rank} would train on {report[3:]} and rank 0 on {reports[0][3:]}: give every host GPUs, "
                f"or give --device cpu"
            )
    return "ok"


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_zero_first(step: Callable[[], T]) -> T:
    """Run `step` on rank 0 alone and return its result on every rank.

    For everything that must happen once or that must not be asked of a file server by every rank. The result
    travels pickled.

    Raises:
        InputError: rank 0 raised it; every rank does.
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
        raise InputError(value)
    if kind == "error":
        raise PeerError(f"rank 0 failed: {value}")
    return value


def on_every_rank(step: Callable[[], T]) -> T:
    """Run `step` on every rank; where it raises InputError on any, all raise that of the lowest such rank.

    Raises:
        InputError: with the rank and host that met it.
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
            raise InputError(met_error)
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


def set_threads(threads: int) -> None:
    """Use this many CPU threads, unless OMP_NUM_THREADS already says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
