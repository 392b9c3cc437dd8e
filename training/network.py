"""How fast the hosts exchange data, and whose messages do not arrive."""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from training.errors import first_line
from training.host import Report, Verdict
from training.ranks import RankInfo

MESSAGE_WITHIN = 6.0
"""Seconds for an exchange, so that it fails in time for its report."""
MESSAGE_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}


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
