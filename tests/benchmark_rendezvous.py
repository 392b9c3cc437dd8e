"""How long ranks take to meet at the store of rank 0: real client processes, forked after one import of torch.

python tests/benchmark_rendezvous.py --ranks 64 256 1024 4096

Each does what a rank of the trainer does before its group is made: it waits for the listener, joins the store, tells
its host and its device, and waits for rank 0's word. The line through the points is drawn by least squares.
"""

import argparse
import os
import resource
import signal
import socket
import statistics
import sys
import time
from collections.abc import Sequence

from cluster.machine import die_with_parent
from training.joining import STORE_TOKEN_VARIABLE, agreed_device, store_of_all
from training.preflight import say_host
from training.ranks import RankInfo

PREDICTED = (8192, 80_000)
ADDRESS = "127.0.0.1"


def meet(rank: int, ranks: int) -> None:
    """One rank's part."""
    info = RankInfo("benchmark", rank, ranks, rank % 8, 8)
    store = store_of_all(info)
    say_host(info, store)
    assert agreed_device(info, lambda: "cpu", store) == "cpu"
    store.set(f"over/{rank}", "")
    if rank == 0:
        store.wait([f"over/{other}" for other in range(ranks)])  # its end would take the store from the others


def meeting(ranks: int) -> tuple[float, float, float]:
    """Seconds from the word to begin until the last rank has met all others; seconds of CPU that rank 0 took, store
    included; megabytes that a client has of its own."""
    with socket.create_server((ADDRESS, 0)) as probe:
        port = probe.getsockname()[1]
    os.environ.update({"MASTER_ADDR": ADDRESS, "MASTER_PORT": str(port), STORE_TOKEN_VARIABLE: "of the benchmark"})
    begun, begin = os.pipe()
    said, say = os.pipe()
    children = []
    for rank in range(ranks):
        if child := os.fork():
            children.append(child)
            continue
        try:
            die_with_parent(signal.SIGKILL)
            os.close(begin)
            os.read(begun, 1)  # its end is the word to begin
            meet(rank, ranks)
            used = resource.getrusage(resource.RUSAGE_SELF)
            os.write(say, f"{rank} {time.monotonic()} {used.ru_utime + used.ru_stime} {_own_memory()}\n".encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(say)
    began = time.monotonic()
    os.close(begin)
    ended, of_rank_0 = began, 0.0
    try:
        with os.fdopen(said) as lines:
            for _ in range(ranks):
                who, when, spent, memory = lines.readline().split()
                ended = max(ended, float(when))
                of_rank_0 = float(spent) if who == "0" else of_rank_0
    finally:
        os.close(begun)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return ended - began, of_rank_0, float(memory)


def _own_memory() -> float:
    """Megabytes of this process that it shares with no other."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def line_through(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds for nobody, and for each more."""
    slope, intercept = statistics.linear_regression(sizes, seconds)
    return intercept, slope


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256, 1024, 4096])
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    points: list[tuple[int, float, float]] = []
    for ranks in options.ranks:
        seconds, spent, memory = meeting(ranks)
        points.append((ranks, seconds, spent))
        print(
            f"{ranks:>6} ranks  {seconds:7.2f} s  rank 0 {spent:6.2f} s of CPU  {memory:5.1f} MB a client", flush=True
        )
    if len(points) < 2:
        return 0
    for name, column in (("this machine", 1), ("rank 0 alone", 2)):
        start, each = line_through([point[0] for point in points], [point[column] for point in points])
        predicted = ", ".join(f"{ranks:,}: {start + each * ranks:.1f} s" for ranks in PREDICTED)
        print(f"{name}  {start:.2f} s + {1e6 * each:.0f} µs a rank; by that {predicted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
