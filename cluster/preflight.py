"""While ranks import: what each node says of itself, and whether it fits the others.

A node with another torch trains another model without a word; it is cheaper to find it before the attempt.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLOCK_MAY_DIFFER = 5.0
"""Seconds; logs of two hosts cannot be read side by side beyond it, and file times mislead."""
LEAST_FREE_BYTES = 100 * 2**20
"""Below this the first checkpoint or log is likely to fail."""

VERSIONS = {
    "python": "Python",
    "package": "slurm-mpi-train",
    "sources": "the files of the package cluster",
    "torch": "torch",
    "mpirun": "Open MPI",
}
"""Facts that must be equal on all nodes, and what to call them."""


def node_facts(run_dir: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """What this node says of itself, JSON-able. A version that is not to be found is None.

    Nothing is imported that is looked up, torch least of all. Of Open MPI only 5 and later tells the ranks its
    version; of 4 the version of its PMIx stands for it.
    """
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "package": _version("slurm-mpi-train"),
        "sources": sources_hash(Path(__file__).parent),
        "torch": _version("torch"),
        "mpirun": environ.get("OMPI_VERSION") or environ.get("PMIX_VERSION"),
        "free": {str(folder): _free(folder) for folder in (run_dir, Path(environ.get("TMPDIR") or "/tmp"))},
        "time": time.time(),
    }


def compare(
    facts: Mapping[str, Mapping[str, Any]], heard_at: Mapping[str, float]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Hosts that must not run, each with a sentence that follows its name, and warnings.

    `facts` by host in the order of the allocation. What most hosts have is the measure; where as many have one as
    another, what the first one has, on which the launcher runs.
    `heard_at`: when the launcher heard each host's facts, by its own clock.
    """
    unfit: list[tuple[str, str]] = []
    warnings: list[str] = []
    measure = {name: _measure(name, facts) for name in VERSIONS}
    for host, told in facts.items():
        for name, words in VERSIONS.items():
            usual, there = facts[measure[name]].get(name), told.get(name)
            if usual != there:
                unfit.append((host, _differs(words, name, there, measure[name], usual)))
                break
        off = told["time"] - heard_at.get(host, told["time"])
        if abs(off) > CLOCK_MAY_DIFFER:
            how = "ahead of" if off > 0 else "behind"
            warnings.append(f"the clock of {host} is {abs(off):.0f} s {how} the launcher's: look at its NTP")
    return unfit, [*warnings, *_little_space(facts)]


def _measure(name: str, facts: Mapping[str, Mapping[str, Any]]) -> str:
    """The first host that has of this fact what most have."""
    values = Counter(told.get(name) for told in facts.values())
    usual = max(values, key=lambda value: values[value], default=None)
    return next((host for host, told in facts.items() if told.get(name) == usual), "")


def sources_hash(folder: Path) -> str:
    """One short hash over the Python files of a package, names and contents: which code a node would run."""
    import hashlib

    whole = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        whole.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


def _differs(words: str, name: str, there: str | None, measure: str, usual: str | None) -> str:
    if name == "sources":
        return f"has other files of the package cluster than {measure} ({there} and {usual}): one copy for all nodes"
    return f"has {words} {there or 'not at all'}, {measure} has {usual or 'none'}: the same on all nodes is wanted"


def _little_space(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One warning for each folder that is nearly full. The run directory is the same on all hosts: said once."""
    warned: dict[tuple[str, int], str] = {}
    for host, told in facts.items():
        for folder, free in told.get("free", {}).items():
            if free is not None and free < LEAST_FREE_BYTES:
                warned.setdefault(
                    (folder, free), f"{folder} on {host} has only {free / 2**20:.0f} MB free: df -h {folder}"
                )
    return list(warned.values())


def _version(distribution: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _free(folder: Path) -> int | None:
    try:
        space = os.statvfs(folder)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize
