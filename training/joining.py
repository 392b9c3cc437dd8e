"""Joining the process group: the ranks meet at rank 0's store, agree on a device, and become one group."""

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from training.errors import AgreedError, InputError
from training.host import load_libraries
from training.preflight import say_host
from training.ranks import RankInfo
from training.store import Server, Store, listen

# Long enough for rank 0 to download and tokenise while the others wait for it.
TIMEOUT = timedelta(minutes=30)
STORE_TOKEN_VARIABLE = "CLUSTER_STORE_TOKEN"
"""By which ranks of one attempt know each other; docs/environment.md."""


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
                self._store = store_of_all(self._ranks)
                say_host(self._ranks, self._store)
                self._device = torch.device(agreed_device(self._ranks, self._choose, self._store))
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            load_libraries(self._device)
        except BaseException as error:
            self._error = error


def store_of_all(ranks: RankInfo) -> dist.Store:
    """Where the ranks leave each other messages, once rank 0 listens: for those alone who know the token, where the
    launcher gave one. torchrun's agent has a store of torch's own at that port, which all must use."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    token = os.environ.get(STORE_TOKEN_VARIABLE)
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


def agreed_device(ranks: RankInfo, choose: Callable[[], str], store: dist.Store) -> str:
    """What `choose` says here, once every rank has a device, and all of one kind.

    Raises:
        AgreedError: a rank has none, or another kind than rank 0; every rank raises it.
    """
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
        raise AgreedError(verdict) from error
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
