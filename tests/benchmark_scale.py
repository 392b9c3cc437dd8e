"""What the launcher costs by the number of nodes: seconds and memory, each part in a fresh process.

python tests/benchmark_scale.py                           all parts at 10, 100, 1,000 and 10,000 nodes × 8 GPUs
python tests/benchmark_scale.py --nodes 10000 --parts plan
"""

import argparse
import gc
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from cluster.allocation import Allocation, Host, RankPlace, from_slurm, parse_granted_gpus
from cluster.attempt import gather_witnesses
from cluster.channel import Listener, beat_every, connect
from cluster.command import launch_command
from cluster.decide import decide
from cluster.environment import mpirun_environment, rank_environment
from cluster.goodput import PARTS as PARTS_OF_TIME
from cluster.hostfile import hostfile_text
from cluster.machine import die_with_parent
from cluster.mpirun import OPEN_MPI_5, Mpirun
from cluster.plan import ResourcePlan, batch_script
from cluster.preflight import node_facts
from cluster.rundir import Attempt, create_directories
from cluster.signals import Requests
from cluster.supervise import Supervision, question_for_stacks
from cluster.watch import LONGEST_STACKS, NO_BEAT
from cluster.watchdog import RankView

GPUS = 8
PLAYERS = 4
"""Processes that play the ranks of the channel: each has a descriptor for each of its connections."""
CHANNEL_SECONDS = 8.0
FRAMES = "Traceback (most recent call last):\n" + 12 * '  File "/home/you/train.py", line 123, in step\n    call()\n'
VICTIM = "RuntimeError: [../gloo/transport/tcp/pair.cc:525] RANK: Read error [10.0.0.1]: Connection reset by peer"
ENDS: dict[str, dict[str, Any]] = {
    "complete": {"outcome": "complete", "status": 0, "detail": ""},
    "killed": {"outcome": "signal", "status": 143, "detail": "SIGTERM", "output": 20 * "a line of its log\n"},
    "aborted": {
        "outcome": "signal",
        "status": 134,
        "detail": "SIGABRT",
        "output": FRAMES + "[PG ID 0 Rank RANK] Process group watchdog thread terminated",
    },
    "crashed": {"outcome": "exception", "status": 1, "detail": FRAMES + VICTIM},
}
"""How all ranks but one end; that one raises an error of its own where the others do not complete."""


def plan(nodes: int) -> dict[str, Any]:
    """From Slurm's words for an allocation to all that mpirun and the ranks are given."""
    nodelist = f"gpu[00001-{nodes:05d}]"
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": nodelist,
        "SLURM_TASKS_PER_NODE": f"{GPUS}(x{nodes})",
        "SLURM_JOB_CPUS_PER_NODE": f"96(x{nodes})",
    }
    detail = f"   Nodes={nodelist} CPU_IDs=0-95 Mem=0 GRES=gpu:{GPUS}(IDX:0-{GPUS - 1})\n"
    attempt = Attempt(1, Path("/run"), Path("/run/attempt-0001"), Path("/run/attempt-0001/logs"))
    options = Namespace(forward=[], secret=[], ssh=None, wdir=None, bind_to="none", nic=None, mpirun_arg=[])
    mpirun = Mpirun("/opt/openmpi/bin/mpirun", OPEN_MPI_5)
    took: dict[str, float] = {}

    def timed(part: str, make: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        made = make()
        took[part] = time.perf_counter() - begin
        return made

    request = ResourcePlan(nodes, GPUS)
    timed("batch script", lambda: batch_script(request.sbatch_options("/run/slurm.log"), None, "true"))
    timed("expected allocation", request.expected_allocation)
    granted = timed("allocation", lambda: from_slurm(slurm, parse_granted_gpus(detail)))
    hostfile = timed("hostfile", lambda: hostfile_text(granted, OPEN_MPI_5))
    ranks = timed("rank map", granted.rank_map)
    environ = timed("environment", lambda: mpirun_environment({**os.environ, **slurm}, granted, None, lambda _: True))
    command = timed("command", lambda: launch_command(options, mpirun, granted, ["python"], attempt, environ))
    file = timed("plan.json", lambda: json.dumps({**granted.to_json(), "master_addr": granted.hosts[0].name}))
    place = timed("last rank's place", lambda: Allocation.from_json(json.loads(file)).place(nodes * GPUS - 1))
    facts = {
        "master_addr": "",
        "master_port": 1,
        "store_token": "",
        "attempt_dir": "/run",
        "run_dir": "/run",
        "attempt": 1,
    }
    timed("last rank's variables", lambda: rank_environment(facts, granted, place))
    assert (len(ranks), hostfile.count("\n"), place) == (nodes * GPUS, nodes, ranks[-1])
    return {
        "seconds": sum(took.values()),
        **{part: seconds for part, seconds in took.items() if seconds > 0.001},
        "longest argument": max(map(len, [*command, *(f"{name}={text}" for name, text in environ.items())])),
        "all arguments": sum(
            len(text) + 1 for text in [*command, *(f"{name}={text}" for name, text in environ.items())]
        ),
        "plan.json bytes": len(file),
    }


class Script:
    """Stands for the listener: what ranks say, batch by batch; at its end mpirun ends."""

    def __init__(self, batches: Iterator[list[tuple[int, dict[str, Any]]]], mpirun: Path) -> None:
        self._batches, self._mpirun = batches, mpirun
        self.connected: set[int] = set()

    def exchange(self, seconds: float) -> list[tuple[int, dict[str, Any]]]:
        try:
            return next(self._batches)
        except StopIteration:
            self._mpirun.touch()
            time.sleep(seconds)
            return []

    def tell(self, message: Mapping[str, Any], ranks: Iterable[int] | None = None) -> None:
        pass

    def close(self) -> None:
        pass

    def keep_alive(self, every: float) -> AbstractContextManager[None]:
        return nullcontext()


def life(granted: Allocation, end: Mapping[str, Any]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """All that ranks say: that they began, what their nodes are, a heartbeat, and how they ended."""
    places = granted.rank_map()
    beat = {**NO_BEAT, "phase": "train", "at": "forward", "seconds": dict.fromkeys(PARTS_OF_TIME, 1.0)}
    facts = {**node_facts(Path("/tmp"), {}), "free": {}, "time": time.time()}

    def record(place: RankPlace, what: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        who = {"rank": place.rank, "host": place.host, "pid": 1, "gpu": "0"}
        own = {key: what[key].replace("RANK", str(place.rank)) for key in ("detail", "output") if key in what}
        return place.rank, {"record": {**who, **what, **own, "time_ns": time.time_ns()}}

    yield [record(place, {"state": "started"}) for place in places]
    yield [(place.rank, {"node": facts}) for place in places if place.local_rank == 0]
    yield [(place.rank, {"beat": beat, "state": "S"}) for place in places]
    state = "complete" if end["outcome"] == "complete" else "failed"
    whole = {"error": None, "errno": None, "oom_killed": False, "state": state, **end}
    crash = {**whole, "outcome": "exception", "status": 1, "detail": FRAMES + "ValueError: boom"}
    yield [record(places[0], whole if state == "complete" else crash)]
    yield [record(place, whole) for place in places[1:]]
    yield [(place.rank, {"closed": True}) for place in places]


def records(nodes: int) -> dict[str, Any]:
    """From the words of all ranks to the verdict, by how they end."""
    granted = Allocation("slurm", tuple(Host(f"n{number:05d}", GPUS, GPUS, 96) for number in range(nodes)))
    took: dict[str, float] = {}
    for name, end in ENDS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "attempt-0001"
            attempt = Attempt(1, Path(folder), path, path / "logs")
            create_directories(attempt)
            over = Path(folder) / "over"
            mpirun = ["sh", "-c", f"while [ ! -e {over} ]; do sleep 0.01; done"]
            script: Any = Script(iter(list(life(granted, end))), over)
            requests = Requests(lambda: "")
            supervision = Supervision(mpirun, dict(os.environ), {}, granted, attempt, script, requests, 120.0)
            gc.collect()
            gc.freeze()  # the script is no part of what is measured
            begin = time.perf_counter()
            seen = gather_witnesses(attempt, granted, supervision.records, supervision.run(), requests)
            verdict = decide(seen)
            took[name] = time.perf_counter() - begin
            assert verdict.kind == ("complete" if name == "complete" else "rank crash"), verdict
            assert verdict.rank == (None if name == "complete" else 0), verdict
    return {"seconds": max(took.values()), **took}


def channel(nodes: int) -> dict[str, Any]:
    """The launcher's end of one connection for each rank, as many as the descriptors allow: how many ranks, seconds
    until all are connected, the share of one core that heartbeats and keep-alives take, and seconds until all have
    answered the question for their stacks with as much as they may."""
    ranks = min(nodes * GPUS, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1000)
    listener = Listener("127.0.0.1", ranks)
    begin = time.perf_counter()
    players = [_play(listener, range(first, ranks, PLAYERS)) for first in range(PLAYERS)]
    try:
        while len(listener.connected) < ranks:
            listener.exchange(0.1)
        connected = time.perf_counter() - begin
        views = {rank: RankView(rank, f"n{rank // GPUS}") for rank in range(ranks)}
        with listener.keep_alive(beat_every(ranks)):
            before, begin, words = time.process_time(), time.perf_counter(), 0
            while time.perf_counter() - begin < CHANNEL_SECONDS:
                for rank, message in listener.exchange(0.1):
                    views[rank].hear(message, time.monotonic())
                    words += 1
            spent, passed = time.process_time() - before, time.perf_counter() - begin
            begin = time.perf_counter()
            listener.tell(question_for_stacks(ranks))
            while any(view.stacks is None for view in views.values()):
                for rank, message in listener.exchange(0.1):
                    views[rank].hear(message, time.monotonic())
            answered = time.perf_counter() - begin
    finally:
        for player in players:
            os.kill(player, signal.SIGKILL)
    return {"ranks": ranks, "seconds": connected, "words": words / passed, "core": spent / passed, "stacks": answered}


def _play(listener: Listener, ranks: range) -> int:
    """A process that speaks for these ranks, evenly spread over time."""
    if pid := os.fork():
        return pid
    die_with_parent(signal.SIGKILL)
    wires = [connect(listener.address, listener.port, listener.token, rank, 60) for rank in ranks]
    beat = {**NO_BEAT, "phase": "train", "at": "forward", "seconds": dict.fromkeys(PARTS_OF_TIME, 1.0)}
    every = beat_every(len(ranks) * PLAYERS)
    begin = time.monotonic()
    for number in itertools.count():
        if (ahead := begin + number * every / len(wires) - time.monotonic()) > 0.05:
            time.sleep(ahead)
        wire = wires[number % len(wires)]
        wire.send({"beat": beat, "state": "S"})
        for message in wire.receive():
            if message.get("do") == "stacks":
                wire.send({"stacks": "x" * min(LONGEST_STACKS, message["letters"]), "state": "S"})
    raise AssertionError


PARTS: dict[str, tuple[Callable[[int], dict[str, Any]], float]] = {
    "plan": (plan, 0.1),
    "records": (records, 5.0),
    "channel": (channel, 30.0),
}
"""With the seconds that each may take at 10,000 nodes."""


def _most_memory() -> float:
    """Megabytes of this process at its largest; getrusage(2) would count those of the one that started it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="the fastest counts: others work on the machine too")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        [part], [nodes] = options.parts, options.nodes
        found = PARTS[part][0](nodes)
        print(json.dumps({**found, "megabytes": _most_memory()}))
        return 0
    missed = 0
    for part in options.parts:
        goal = PARTS[part][1]
        print(f"{part} (goal: {goal:g} s)")
        for nodes in options.nodes:
            command = [sys.executable, __file__, "--one", "--parts", part, "--nodes", str(nodes)]
            rounds = [
                subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True) for _ in range(options.rounds)
            ]
            found = min((json.loads(done.stdout.splitlines()[-1]) for done in rounds), key=lambda one: one["seconds"])
            words = "  ".join(f"{name} {value:,.{0 if value >= 100 else 3}f}" for name, value in found.items())
            print(f"{nodes:>6} nodes  {words}")
            missed += found["seconds"] > goal
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
