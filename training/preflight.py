"""Before a run trains: is every host fit for it? All ranks look at once, in about a second.

Each rank tells through the store what it found, rank 0 judges, and all read the verdict: a host that does not answer
in 10 seconds is named, and nobody waits for it. First all say that they are ready, for which they have a minute: what
they import may come from a slow file server. Then two rounds: what each rank sees on its own
host, and how fast the hosts exchange data.
"""

import json
import math
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from training.errors import NodeError, class_and_line, first_line
from training.ranks import RankInfo

READY_WITHIN = 60.0
ANSWER_WITHIN = 10.0
# An exchange must fail in time for its report.
MESSAGE_WITHIN = 6.0
MESSAGE_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
SLOW_FACTOR, SLOW_SECONDS = 3.0, 1.0
CLOCK_SECONDS = 2.0
FREE_DISK_BYTES = 10**9
FREE_MEMORY_SHARE = 0.5
PACKAGES = ("torch", "transformers", "slurm-mpi-train")

Report = dict[str, Any]


@dataclass
class Verdict:
    """What rank 0 makes of the reports."""

    faults: list[tuple[int, str]] = field(default_factory=list)
    """Ranks, each with what is wrong on its host; the first is told."""
    warnings: list[str] = field(default_factory=list)


@dataclass
class Findings:
    """What rank 0 has of all ranks, which are fit; nothing on the other ranks."""

    hosts: list[Report] = field(default_factory=list)
    """Of `look_at_host`, by rank."""
    network: list[Report] = field(default_factory=list)
    """Of `measure_network`, by rank; none for a single rank."""
    warnings: list[str] = field(default_factory=list)


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


# ── one host ──────────────────────────────────────────────────────────────────────────────────────


def load_libraries(device: torch.device) -> None:
    """Multiply for the first time, which starts the device and loads its libraries; beside the imports.

    What it takes is not measured: the imports would count as the device's slowness.
    """
    # What is broken is for `look_at_host` to say.
    with suppress(Exception):
        multiply(device)


def look_at_host(device: torch.device, run_directory: Path) -> Report:
    """What this rank sees of its own host."""
    report: Report = {"host": socket.gethostname(), "device": device.type, "versions": versions()}
    try:
        report |= multiply(device)
        report |= gpu_health(device)
    except Exception as error:
        # A host whose GPU cannot even multiply is what this looks for: it must say so rather than die.
        report["error"] = class_and_line(error)
    existing = run_directory.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    report["disk"] = {}
    for folder in (str(existing), tempfile.gettempdir()):
        with suppress(OSError):
            report["disk"][folder] = shutil.disk_usage(folder).free
    return report


def versions() -> dict[str, str]:
    """What must be the same everywhere."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def multiply(device: torch.device) -> Report:
    """One matrix product whose result is known, and its time.

    Small whole numbers: however they are added up, every sum is exact, also in bfloat16 (at most 256 apart from zero,
    eight standard deviations).
    """
    cuda = device.type == "cuda"
    size, kind = (4096, torch.bfloat16) if cuda else (512, torch.float32)
    # Generators of their own: what training draws must not depend on what was checked before.
    numbers = torch.Generator(device).manual_seed(size)

    def matrix() -> torch.Tensor:
        """-1, 0, 0 or 1 in each place."""
        signs, ones = (torch.randint(0, 2, (size, size), generator=numbers, device=device) for _ in range(2))
        return ((2 * signs - 1) * ones).to(kind)

    left, right = matrix(), matrix()
    product = left @ right  # the first one takes longer
    if cuda:
        torch.cuda.synchronize()
    seconds = math.inf
    for _ in range(3):  # the best of them: a moment in which something else ran is no broken processor
        began = time.perf_counter()
        product = left @ right
        if cuda:
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - began)
    probe = torch.arange(size, dtype=torch.float64, device=device) % 7
    right_result = bool(torch.equal(product.double() @ probe, left.double() @ (right.double() @ probe)))
    return {"right": right_result, "seconds": seconds, "flops": 2 * size**3 / seconds}


def gpu_health(device: torch.device) -> Report:
    """Free memory of this rank's GPU, and its uncorrected memory errors where nvidia-smi tells."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    report: Report = {"memory": [free, total]}
    with suppress(OSError, ValueError, subprocess.SubprocessError, AttributeError):
        query = "--query-gpu=ecc.errors.uncorrected.volatile.total"
        gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        command = ["nvidia-smi", f"--id={gpu}", query, "--format=csv,noheader,nounits"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=True).stdout
        report["ecc"] = int(told.strip())
    return report


def judge_hosts(reports: Sequence[Report], clock: Mapping[str, float]) -> Verdict:
    """What is wrong with any host.

    Args:
        reports: of `look_at_host`, by rank.
        clock: seconds by which a host's clock differs from rank 0's.
    """
    verdict = Verdict()
    usual = median(report.get("seconds", 0.0) for report in reports)
    for rank, report in enumerate(reports):
        for fault in _faults(report, reports[0], usual):
            verdict.faults.append((rank, fault))
    seen: set[str] = set()
    for report in reports:
        host = report["host"]
        if host in seen:
            continue
        seen.add(host)
        for folder, free in report["disk"].items():
            if free < FREE_DISK_BYTES:
                verdict.warnings.append(f"{host} has {free / 1e9:.2f} GB free in {folder}")
        if abs(clock.get(host, 0.0)) > CLOCK_SECONDS:
            verdict.warnings.append(f"the clock of {host} differs by {clock[host]:+.1f} s from that of rank 0's host")
    return verdict


def _faults(report: Report, first: Report, usual: float) -> list[str]:
    if "error" in report:
        return [f"its {'GPU' if report['device'] == 'cuda' else 'processor'} failed: {report['error']}"]
    faults = [
        f"{name} {report['versions'].get(name, 'missing')}, while rank 0 on {first['host']} has "
        f"{first['versions'].get(name, 'none')}: make them the same"
        for name in {**first["versions"], **report["versions"]}
        if report["versions"].get(name) != first["versions"].get(name)
    ]
    if not report["right"]:
        faults.append("a matrix product came out wrong: its processor or memory is broken")
    if report["seconds"] > max(SLOW_SECONDS, SLOW_FACTOR * usual):
        faults.append(f"a matrix product took {report['seconds']:.1f} s, on the other ranks {usual:.3f} s")
    if report.get("ecc"):
        faults.append(f"its GPU has {report['ecc']} uncorrected memory errors")
    if "memory" in report:
        free, total = report["memory"]
        if free < FREE_MEMORY_SHARE * total:
            faults.append(f"{free / 1e9:.1f} of {total / 1e9:.1f} GB of its GPU are free: another process uses it")
    return faults


# ── the network ───────────────────────────────────────────────────────────────────────────────────


def measure_network(ranks: RankInfo, device: torch.device, hosts: Sequence[str]) -> Report:
    """Bytes per second of an all-reduce over all ranks, and of one message from each host to the next.

    Args:
        hosts: by rank.
    """
    report: Report = {"host": hosts[ranks.rank]}
    leaders = [rank for rank, host in enumerate(hosts) if host not in hosts[:rank]]
    size = MESSAGE_BYTES[device.type]
    message = torch.full((size // 4,), float(ranks.rank + 1), device=device)
    try:
        if len(leaders) > 1 and ranks.rank in leaders:
            place = leaders.index(ranks.rank)
            report["from"] = leaders[place - 1]
            received = torch.empty_like(message)
            following = leaders[(place + 1) % len(leaders)]
            operations = [
                dist.P2POp(dist.isend, message, following),
                dist.P2POp(dist.irecv, received, report["from"]),
            ]
            for _ in range(2):  # the first one makes the connection
                report["ring"] = size / _seconds(lambda: dist.batch_isend_irecv(operations), device)
            report["right"] = bool((received == report["from"] + 1).all())
        for numbers in (torch.zeros_like(message), message):  # the first one makes the connections
            report["all_reduce"] = size / _seconds(partial(_add_up, numbers), device)
        report["sum_right"] = bool((message == ranks.world_size * (ranks.world_size + 1) / 2).all())
    except RuntimeError as error:
        report["error"] = first_line(error)
    return report


def _add_up(numbers: torch.Tensor) -> list[Any]:
    """The sum over all ranks, begun."""
    return [dist.all_reduce(numbers, async_op=True)]


def _seconds(exchange: Callable[[], Iterable[Any]], device: torch.device) -> float:
    """How long an exchange takes; it is waited for, but not for ever."""
    if device.type != "cuda":
        began = time.perf_counter()
        for work in exchange():
            work.wait(timedelta(seconds=MESSAGE_WITHIN))
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for work in exchange():
        work.wait()  # the GPU's queue waits, not the host
    last.record()
    deadline = time.monotonic() + MESSAGE_WITHIN
    while not last.query():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no answer in {MESSAGE_WITHIN:g} s")
        time.sleep(0.0002)
    return float(first.elapsed_time(last)) / 1000


def judge_network(reports: Sequence[Report], hosts: Sequence[str]) -> Verdict:
    """Which host's messages do not arrive, or arrive changed."""
    verdict = Verdict()
    for rank, report in enumerate(reports):
        if "right" in report and not report["right"]:
            verdict.faults.append((rank, f"a message from {hosts[report['from']]} arrived changed"))
    broken = [(rank, report) for rank, report in enumerate(reports) if "error" in report]
    # A rank that could exchange nothing with the host before it says more than those that wait for an all-reduce.
    for rank, report in sorted(broken, key=lambda each: "ring" in each[1] or "from" not in each[1]):
        if "from" in report and "ring" not in report:
            verdict.faults.append((rank, f"nothing arrives from {hosts[report['from']]}: {report['error']}"))
        else:
            verdict.faults.append((rank, f"the all-reduce does not end: {report['error']}"))
    wrong = [rank for rank, report in enumerate(reports) if report.get("sum_right") is False]
    if wrong:
        verdict.faults.append((wrong[0], f"a sum over all ranks came out wrong on {len(wrong)} of {len(reports)}"))
    return verdict


# ── together ──────────────────────────────────────────────────────────────────────────────────────


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
