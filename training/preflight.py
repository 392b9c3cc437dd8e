"""Before a run trains: is every host fit for it? All ranks look at once, in about a second.

Each rank tells through the store what it found, rank 0 judges, and all read the verdict: a host that does not answer
in 10 seconds is named, and nobody waits for it. First all say that they are ready, for which they have a minute: what
they import may come from a slow file server. Then two rounds: what each rank sees on its own host, and how fast the
hosts exchange data.
"""

import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.errors import NodeError
from training.host import Report, Verdict, judge_hosts, look_at_host
from training.network import judge_network, measure_network
from training.ranks import RankInfo

READY_WITHIN = 60.0
ANSWER_WITHIN = 10.0


@dataclass(frozen=True)
class Findings:
    """What rank 0 has of all ranks, which are fit; nothing on the other ranks."""

    hosts: list[Report]
    """Of `look_at_host`, by rank."""
    network: list[Report]
    """Of `measure_network`, by rank; none for a single rank."""
    warnings: list[str]


def preflight(ranks: RankInfo, device: torch.device, store: dist.Store | None, run_directory: Path) -> list[str]:
    """Check this rank's host together with all others; arguments and errors as of `examine`.

    Returns the lines to print: what was measured, then warnings.
    """
    found = examine(ranks, device, store, run_directory)
    if not found.hosts:
        return []
    return [summary(found.hosts, found.network), *(f"warning: {text}" for text in found.warnings)]


def examine(ranks: RankInfo, device: torch.device, store: dist.Store | None, folder: Path) -> Findings:
    """Look at this rank's host together with all others.

    Args:
        ranks: this process's place.
        device: this rank's.
        store: of the process group; None for a single rank.
        folder: its file system's free space counts.

    Raises:
        NodeError: a host is unfit; on every rank, with the same words.
    """
    ready = _Round(ranks, store, "ready", READY_WITHIN)
    ready.exchange({"host": socket.gethostname()})
    ready.agree(Verdict)
    own = look_at_host(device, folder)
    round_one = _Round(ranks, store, "host", ANSWER_WITHIN)
    reports = round_one.exchange(own)
    round_one.agree(lambda: judge_hosts(reports, round_one.clock))
    measured: list[Report] = []
    if store is not None:
        round_two = _Round(ranks, store, "network", ANSWER_WITHIN)
        names = round_two.share([report["host"] for report in reports])
        measured = round_two.exchange(measure_network(ranks, device, names))
        round_two.agree(lambda: judge_network(measured, names))
        round_one.warnings += round_two.warnings
    return Findings(reports, measured, round_one.warnings)


class _Round:
    """One exchange of reports over the store, with rank 0 as the judge."""

    def __init__(self, ranks: RankInfo, store: dist.Store | None, name: str, within: float) -> None:
        """`within` so many seconds every rank must answer."""
        self._ranks, self._store, self._within = ranks, store, within
        self._name = f"preflight/{name}"
        self.clock: dict[str, float] = {}
        self.warnings: list[str] = []
        self._silent: list[int] = []

    def exchange(self, own: Report) -> list[Report]:
        """The reports of all ranks, on rank 0; those of silent ranks are missing, and `agree` names them."""
        if self._store is None:
            return [own]
        self._set(f"report/{self._ranks.rank}", own)
        if self._ranks.rank != 0:
            if self._get("go") is not None:
                self._set(f"clock/{self._ranks.rank}", time.time())
            return []
        deadline = time.monotonic() + self._within
        reports = [self._get(f"report/{rank}", deadline) for rank in range(self._ranks.world_size)]
        self._silent = [rank for rank, report in enumerate(reports) if report is None]
        began = time.time()
        self._set("go", True)
        if not self._silent:
            told = {0: began}
            told |= {rank: self._get(f"clock/{rank}", deadline) for rank in range(1, self._ranks.world_size)}
            ended = time.time()
            for rank, at in told.items():
                if at is not None:
                    # Told at some moment between the two: inside of them nothing is known to differ.
                    self.clock.setdefault(reports[rank]["host"], max(0.0, at - ended) + min(0.0, at - began))
        return [report for report in reports if report is not None]

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self._ranks.rank == 0:
            self._set("shared", value)
            return value
        shared = self._get("shared")
        if shared is None:
            raise NodeError(f"rank 0 does not answer in {self._within:g} s", self._ranks.rank)
        return shared

    def agree(self, judge: Callable[[], Verdict]) -> None:
        """Raise the judge's first fault on every rank."""
        if self._store is None or self._ranks.rank == 0:
            if self._silent:
                more = f", nor do {len(self._silent) - 1} more" if len(self._silent) > 1 else ""
                rank = self._silent[0]
                text = f"rank {rank} on {self._host(rank)} does not answer in {self._within:g} s{more}"
                said: dict[str, Any] = {"fault": text, "speaker": 0}
            else:
                verdict = judge()
                self.warnings = verdict.warnings
                said = {"fault": None}
                if verdict.faults:
                    rank, text = verdict.faults[0]
                    said = {"fault": f"rank {rank} on {self._host(rank)}: {text}", "speaker": rank}
            self._set("verdict", said)
        else:
            said = self._get("verdict", time.monotonic() + 2 * self._within) or {
                "fault": f"rank 0 on {self._host(0)} does not answer in {2 * self._within:g} s",
                "speaker": self._ranks.rank,
            }
        if said["fault"] is not None:
            raise NodeError(said["fault"], said["speaker"])

    def _host(self, rank: int) -> str:
        if self._store is None:
            return socket.gethostname()
        told = self._get(f"host/{rank}", time.monotonic() + 1.0, prefix="preflight")
        return str(told) if told is not None else "a host that never spoke"

    def _set(self, key: str, value: Any) -> None:
        if self._store is not None:
            self._store.set(f"{self._name}/{key}", json.dumps(value))

    def _get(self, key: str, deadline: float | None = None, prefix: str | None = None) -> Any:
        """The value of a key; None where nobody sets it in time."""
        assert self._store is not None
        left = self._within if deadline is None else max(0.05, deadline - time.monotonic())
        name = f"{prefix or self._name}/{key}"
        try:
            self._store.wait([name], timedelta(seconds=left))
            return json.loads(self._store.get(name))
        except RuntimeError:
            return None


def say_host(ranks: RankInfo, store: dist.Store) -> None:
    """Tell where this rank is, while it can still speak."""
    store.set(f"preflight/host/{ranks.rank}", json.dumps(socket.gethostname()))


def summary(reports: Sequence[Report], measured: Sequence[Report]) -> str:
    """What was measured, as one line."""
    hosts = len({report["host"] for report in reports})
    flops = [report["flops"] / 1e9 for report in reports]
    parts = [f"{hosts} node{'s' if hosts > 1 else ''}", f"{len(reports)} rank{'s' if len(reports) > 1 else ''}"]
    parts.append(f"matrix product {min(flops):,.0f} to {max(flops):,.0f} GFLOP/s")
    speeds = [report["all_reduce"] for report in measured if "all_reduce" in report]
    if speeds:
        parts.append(f"all-reduce {rate(min(speeds))}")
    rings = [report["ring"] for report in measured if "ring" in report]
    if rings:
        parts.append(f"node to node {rate(min(rings))} at least")
    return "preflight: " + ", ".join(parts)


def rate(speed: float) -> str:
    """Bytes per second, for people."""
    return f"{speed / 1e9:.1f} GB/s" if speed >= 1e8 else f"{speed / 1e6:.1f} MB/s"
