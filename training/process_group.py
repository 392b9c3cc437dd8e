"""The ranks as one group: joining it, and the few things they do together besides training.

Every function here is called by all ranks at the same place of the program.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from training.errors import InputError, PeerError
from training.preflight import load_libraries, say_host
from training.ranks import RankInfo
from training.store import Server, Store, listen

# Long enough for rank 0 to download and tokenise while the others wait for it.
TIMEOUT = timedelta(minutes=30)
STORE_TOKEN = "CLUSTER_STORE_TOKEN"
"""By which ranks of one attempt know each other; docs/environment.md."""

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
        self._store: dist.Store | None = None
        self._device: torch.device | None = None
        self._error: BaseException | None = None
        # A daemon, so that a rank that cannot import does not wait for the others before it says so.
        self._thread = threading.Thread(target=self._meet, name="joining", daemon=True)
        self._thread.start()

    def finish(self) -> tuple[torch.device, dist.Store | None]:
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
            cuda = device.type == "cuda"
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                rank=self._ranks.rank,
                world_size=self._ranks.world_size,
                store=dist.PrefixStore("training", store_for_nccl(self._ranks, self._store) if cuda else self._store),
                timeout=TIMEOUT,
                device_id=device if cuda else None,
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


def _store_of_all(ranks: RankInfo) -> dist.Store:
    """Where the ranks leave each other messages, once rank 0 listens: for those alone who know the token, where the
    launcher gave one. torchrun's agent has a store of torch's own at that port, which all must use."""
    address, port, token = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), os.environ.get(STORE_TOKEN)
    if token:
        if ranks.rank == 0:
            Server(address, port, token, alone=ranks.local_world_size == ranks.world_size)
        return Store(address, port, token, TIMEOUT)
    if ranks.rank != 0:
        wait_for_listener(address, port, TIMEOUT.total_seconds())
    store, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.world_size, timeout=TIMEOUT))
    return store


def store_for_nccl(ranks: RankInfo, store: dist.Store) -> dist.Store:
    """Of the same ranks, for NCCL, whose own threads ask their store and must not wait for the interpreter: torch's,
    which asks nobody who he is. It listens on the job's interface, and ranks alone are told the prefix of its keys."""
    if not isinstance(store, Store):
        return store
    address = os.environ["MASTER_ADDR"]
    native: dist.Store | None = None
    if ranks.rank == 0:
        listener = listen(address, 0, alone=ranks.local_world_size == ranks.world_size)
        port = listener.getsockname()[1]
        native = dist.TCPStore(
            address, port, ranks.world_size, True, TIMEOUT, False, master_listen_fd=listener.detach()
        )
        store.set("nccl", f"{port} {os.urandom(16).hex()}")
    told, prefix = store.get("nccl").decode().split()
    if native is None:
        native = dist.TCPStore(address, int(told), ranks.world_size, False, TIMEOUT, False)
    return dist.PrefixStore(prefix, native)


def wait_for_listener(host: str, port: int, seconds: float) -> None:
    """Wait until something listens at the port, at most so long; whatever else is wrong with the address is for
    the rendezvous to say.

    torch's own store tries again after 0.25 to 0.75 seconds and then ever less often, which a rank that comes a
    moment before rank 0 would wait in vain.
    """
    deadline, pause = time.monotonic() + seconds, 0.01
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
        except ConnectionRefusedError:
            time.sleep(pause)
            pause = min(pause * 1.3, 0.5)
        except OSError:
            return
        else:
            return


def _agreed_device(ranks: RankInfo, choose: Callable[[], str], store: dist.Store) -> str:
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
