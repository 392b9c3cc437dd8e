"""One rank: check that it stands where the plan says, run the program, and tell the launcher how it ended.

mpirun starts ``python -m cluster.rank PLAN -- PROGRAM…`` once per rank. The process that mpirun sees stays small
and only watches; a child runs the program, in the program's own interpreter (see `cluster.watch`).
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.allocation import Allocation, RankPlace
from cluster.blame import is_victim
from cluster.channel import Wire, beat_every, connect
from cluster.compile_cache import compile_cache_variables
from cluster.environment import default_omp_threads, rank_environment, simulated_gpus
from cluster.errors import LAUNCHER
from cluster.growing_logs import tail
from cluster.machine import die_with_parent, is_this_host, visible_gpus
from cluster.mpirun import program_of
from cluster.preflight import node_facts
from cluster.rundir import rank_log
from cluster.signals import WARNINGS
from cluster.watch import Ending, Watched, watch

GRACE_FOR_THE_GUILTY = 1.0
"""Seconds that a rank whose peer has gone stays, so that mpirun does not kill that peer before its own record."""
TAKEN_WITHIN = 5.0
"""Seconds in which the launcher should have taken a rank's last words."""
LAST_OUTPUT = 2000
"""Letters of its log that a rank tells which a signal ended; the launcher would have to read a file of each rank."""


def main(arguments: Sequence[str]) -> int:
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
    plan_path, _, *given = arguments
    program = program_of(given)
    here = socket.gethostname()
    try:
        plan = json.loads(Path(plan_path).read_text())
    except OSError as error:
        print(
            f"error: {here} cannot read {plan_path} ({error.strerror}): "
            "the run directory must lie on a file system that all nodes share",
            file=sys.stderr,
        )
        return LAUNCHER
    allocation = Allocation.from_json(plan)
    rank, size, local_rank = identity(os.environ)
    try:
        address, port = plan["launcher"]
        wire = connect(address, port, plan["token"], rank)
    except OSError as error:
        print(
            f"error: rank {rank} on {here} cannot reach the launcher at {address}:{port} ({error}): "
            "let the nodes reach each other, or name their common network with --nic",
            file=sys.stderr,
        )
        return LAUNCHER
    facts: dict[str, Any] = {"rank": rank, "host": here, "pid": os.getpid()}
    if problem := mismatch(allocation, rank, size, local_rank, visible_gpus(os.environ), is_this_host):
        print(f"error: rank {rank} on {here} {problem}", file=sys.stderr)
        say_end(wire, facts, Ending("mismatch", LAUNCHER, problem))
        return LAUNCHER
    place = allocation.place(rank)
    host = allocation.hosts[place.node]
    os.environ.update(rank_environment(plan, allocation, place))
    os.environ.setdefault("OMP_NUM_THREADS", str(default_omp_threads(host)))
    if allocation.source == "local" and host.gpus:
        visible = simulated_gpus(visible_gpus(os.environ), place, host)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
    os.environ.update(compile_cache_variables(program, Path(plan["run_dir"]), os.environ))
    log = rank_log(Path(plan["log_dir"]), rank)
    facts["gpu"] = gpu_name(place, visible_gpus(os.environ))
    try:
        _redirect_output(log)
    except OSError as error:
        words = f"OSError: {error}"
        say_end(wire, facts, Ending("exception", 1, words, "builtins.OSError", error.errno))
        return 1
    wire.send({"record": {**facts, "state": "started", "time_ns": time.time_ns()}})

    def say_exception(ending: Ending) -> None:
        say_end(wire, facts, ending, wait=False)

    watched = Watched(program)
    if local_rank == 0:  # looked up while the program imports, and beside it: a file server may be slow

        def tell_facts() -> None:
            wire.send({"node": node_facts(Path(plan["run_dir"]), os.environ)})

        threading.Thread(target=tell_facts, daemon=True).start()
    ending = watch(watched, wire, say_exception, beat_every(size))
    if ending.outcome == "signal":  # NCCL's watchdog says there why it aborts
        facts["output"] = tail(log)[-LAST_OUTPUT:]
    if is_victim({**facts, **ending._asdict()}):
        time.sleep(GRACE_FOR_THE_GUILTY)
    say_end(wire, facts, ending)
    return 0 if ending.outcome == "saved" else ending.status  # mpirun would kill the ranks that are still saving


def say_end(wire: Wire, facts: Mapping[str, Any], ending: Ending, wait: bool = True) -> None:
    """Tell the launcher how this rank ended, and with `wait` see to it that the launcher has it."""
    state = ending.outcome if ending.outcome in ("complete", "saved") else "failed"
    wire.send({"record": {**facts, **ending._asdict(), "state": state, "time_ns": ending.time_ns or time.time_ns()}})
    deadline = time.monotonic() + TAKEN_WITHIN
    while wait and not wire.closed and time.monotonic() < deadline:
        select.select([wire.socket], [], [], 0.1)
        if any(message.get("do") == "leave" for message in wire.receive()):
            return


def identity(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """Rank, world size and local rank as Open MPI or Hydra (MPICH) told this process."""
    if "OMPI_COMM_WORLD_RANK" in environ:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    else:
        names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
    rank, size, local_rank = (int(environ[name]) for name in names)
    return rank, size, local_rank


def mismatch(
    allocation: Allocation,
    rank: int,
    size: int,
    local_rank: int,
    visible: Sequence[str],
    is_here: Callable[[str], bool],
) -> str | None:
    """What is wrong with this rank's place by the plan, worded to follow its name; None where nothing is.

    `visible` are the GPUs this process can see; ``is_here(name)`` tells whether a host name means this machine.
    """
    if size != allocation.world_size:
        return f"is in a world of {size}, the plan wants {allocation.world_size} ranks"
    place = allocation.place(rank)
    if allocation.source == "local":
        return None
    if not is_here(place.host):
        return f"should be on {place.host} by the plan"
    if local_rank != place.local_rank:
        return f"has local rank {local_rank}, the plan wants {place.local_rank}"
    if place.gpu is not None and place.gpu >= len(visible):
        seen = f"{len(visible)} GPU{'' if len(visible) == 1 else 's'}"
        return (
            f"sees {seen}, the plan gives it GPU {place.gpu} of "
            f"{allocation.hosts[place.node].gpus}: ask Slurm with --gpus-per-node (not --gpus-per-task)"
        )
    return None


def gpu_name(place: RankPlace, visible: Sequence[str]) -> str | None:
    """The GPU of this rank as the driver knows it (an index or a UUID)."""
    if place.gpu is None or not visible:
        return None
    return visible[place.gpu]


def _redirect_output(path: Path) -> None:
    """Standard output and error into the rank's own file: mpirun's own per-rank files lose lines (Open MPI 5)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(path, flags, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
