"""What a rank sees of its own host, and which of all hosts is unfit by that."""

import math
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from training.errors import class_and_line
from training.run_directory import nearest_existing

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
    report["disk"] = {}
    for folder in (str(nearest_existing(run_directory)), tempfile.gettempdir()):
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
