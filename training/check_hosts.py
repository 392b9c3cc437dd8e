"""How fast each host of an allocation is, alone and with the others: what every run checks first, as a table.

    python -m cluster.launch -- python -m training.check_hosts

`cluster.doctor --nodes` runs it. Exit status: 0; 64 where an option is given; 71 where a host is not fit or is much
slower than the others, and the last line names it.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from training.command import run_on_ranks
from training.errors import COMPLETE, InputError, NodeError
from training.ranks import RankInfo
from training.teardown import exit_with
from training.terminal import columns

SLOW = 0.5
"""Of the other hosts' median: below that something is wrong with a host or its cable."""


def main() -> int:
    """Measure; the process's exit status. There are no options but `--help`."""
    if "--help" in sys.argv[1:]:
        print(__doc__, end="")
        return COMPLETE
    return run_on_ranks(measure)


def measure(ranks: RankInfo) -> None:
    """Measure together with all ranks, and print the table.

    Raises:
        InputError: something was given.
        NodeError: a host is not fit, or much slower than the others.
    """
    from training import process_group
    from training.device import device_name, own_device, share_cpus
    from training.joining import Joining
    from training.preflight import examine

    if given := sys.argv[1:]:
        raise InputError(f"given {given[0]}, wanted no option but --help; those of the launcher come before the --")
    share_cpus(ranks)
    device, store = Joining(ranks, lambda: own_device("auto", ranks)).finish()
    found = examine(ranks, device, store, Path.cwd())
    faults: list[str] = []
    if ranks.rank == 0:
        hosts = by_host(found.hosts, found.network)
        print(*table(hosts, device_name(device)), sep="\n")
        print(*(f"warning: {text}\n" for text in found.warnings), sep="", end="", flush=True)
        faults = slow_hosts(hosts)
    faults = process_group.rank_zero_first(lambda: faults)
    process_group.leave()
    if faults:
        raise NodeError("; ".join(faults), speaker=0)


def by_host(reports: Sequence[dict[str, Any]], network: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By host: `ranks`, `flops` of its slowest, and in bytes per second `ring` (a message from the host before it) and
    `all_reduce`; None where it was not measured."""
    hosts: dict[str, dict[str, Any]] = {}
    for rank, report in enumerate(reports):
        host = hosts.setdefault(
            report["host"], {"ranks": 0, "flops": report["flops"], "ring": None, "all_reduce": None}
        )
        host["ranks"] += 1
        host["flops"] = min(host["flops"], report["flops"])
        if network:
            told = network[rank]
            host["ring"] = told.get("ring", host["ring"])
            host["all_reduce"] = min(filter(None, (host["all_reduce"], told.get("all_reduce"))), default=None)
    return hosts


def table(hosts: dict[str, dict[str, Any]], device: str) -> list[str]:
    """The hosts in rank order, as aligned lines."""
    from training.preflight import rate

    def words(speed: float | None) -> str:
        return "–" if speed is None else rate(speed)

    rows = []
    for name, host in hosts.items():
        flops = f"{host['flops'] / 1e9:,.0f} GFLOP/s"
        rows.append((name, str(host["ranks"]), flops, words(host["ring"]), words(host["all_reduce"])))
    head = ("host", "ranks", "matrix product", "from the host before", "all-reduce")
    return [f"{len(hosts)} host{'s' if len(hosts) > 1 else ''} on {device}", *columns(head, rows)]


def slow_hosts(hosts: dict[str, dict[str, Any]]) -> list[str]:
    """Sentences on hosts that are much slower than the median of the others."""
    measures: dict[str, Callable[[float], str]] = {
        "flops": lambda value: f"a matrix product at {value / 1e9:,.0f} GFLOP/s",
        "ring": lambda value: f"a message from the host before at {value / 1e6:,.0f} MB/s",
    }
    faults = []
    for name, host in hosts.items():
        for measure, words in measures.items():
            others = [other[measure] for key, other in hosts.items() if key != name and other[measure] is not None]
            if host[measure] is not None and others and host[measure] < SLOW * median(others):
                faults.append(f"{name}: {words(host[measure])}, the others {words(median(others)).split(' at ')[1]}")
    return faults


if __name__ == "__main__":
    exit_with(main)
