"""Without Slurm: the same launcher, on this machine or on the hosts given."""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.allocation import Allocation
from cluster.environment import with_project
from cluster.errors import RequestError, refused_by
from cluster.granted import named_hosts, this_machine
from cluster.growing_logs import tail
from cluster.lock import launcher_holds
from cluster.machine import visible_gpus
from cluster.mpirun import find_mpirun
from cluster.preparation import prepare_here
from cluster.private import private
from cluster.request import SLURM_OPTIONS, check_training, experiment_directory, launch_arguments
from cluster.rundir import next_attempt
from cluster.trainer import name_run_directory

if TYPE_CHECKING:
    import subprocess

LAUNCHER_LOG = "launcher.log"
"""In the run directory: what a launcher says that has no job and no terminal."""


def run_here(options: Namespace, program: list[str], given: Sequence[str]) -> int:
    """In the foreground; the run's exit status."""
    say_what_is_ignored(options)
    _, arguments = prepare_launch(options, program, given)
    from cluster.launch import main as launch

    return launch(arguments)


def say_what_is_ignored(options: Namespace) -> None:
    """One line on the options given that only sbatch could follow."""
    names = [*SLURM_OPTIONS, "sbatch", "prepare-sbatch"]
    if given := [f"--{name}" for name in names if getattr(options, name.replace("-", "_"))]:
        print(f"note: without Slurm {', '.join(given)} has no meaning")


def prepare_launch(options: Namespace, program: list[str], given: Sequence[str]) -> tuple[Path, list[str]]:
    """All that comes before the launcher: its run directory, with the request in it, and its arguments."""
    allocation = allocation_here(options)
    run_dir = experiment_directory(options, program)
    check_training(options, [name_run_directory(program, run_dir)], allocation.world_size)
    if options.prepare_first:
        prepare_here(options, program, run_dir)
    from cluster.request_file import record_request

    find_mpirun(options.mpirun, os.environ)  # before anything is written
    if not launcher_holds(run_dir):
        record_request(run_dir, given, None)
    nodes = {} if allocation.source == "ssh" else {"cluster": "local", "nodes": options.nodes or 1}
    ranks = ranks_on_each_node(options)
    return run_dir, [*launch_arguments(options, run_dir, **nodes, ranks_per_node=ranks), "--", *program]


def start_launcher(run_dir: Path, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    """The launcher in a session of its own, which outlives this process; it has begun, or has ended already.

    Raises a `ClusterError` with its last words where it ended before an attempt.
    """
    import subprocess

    attempt = next_attempt(run_dir, None)
    command = [sys.executable, "-u", "-m", "cluster.launch", *arguments]
    silent = subprocess.DEVNULL
    with open(run_dir / LAUNCHER_LOG, "a", opener=private) as log:
        launcher = subprocess.Popen(
            command, env=with_project(os.environ), stdin=silent, stdout=log, stderr=log, start_new_session=True
        )
    while launcher.poll() is None and not attempt.plan.exists():
        time.sleep(0.05)
    if not attempt.path.exists():
        last = tail(run_dir / LAUNCHER_LOG).rpartition("\n")[2]
        raise refused_by(launcher.returncode, last.removeprefix("error: "))
    return launcher


def allocation_here(options: Namespace) -> Allocation:
    """The hosts given, or this machine's simulated nodes once it is sure that the GPUs asked for exist."""
    if options.hosts or options.hostfile:
        if options.nodes or options.gpus:
            raise RequestError("--hosts names the nodes and their ranks: leave out --nodes and --gpus")
        return named_hosts(options)
    gpus, nodes, present = options.gpus or 0, options.nodes or 1, len(visible_gpus(os.environ))
    if gpus * nodes > present:
        raise RequestError(
            f"--nodes {nodes} --gpus {gpus} asks for {gpus * nodes} GPUs, this machine has {present}: "
            "use --ranks-per-node N for ranks without GPUs of their own"
        )
    return this_machine(nodes, ranks_on_each_node(options))


def ranks_on_each_node(options: Namespace) -> int | None:
    """As in a job: one for each GPU asked for, one where none is to be; None where nothing is said."""
    asked: int | None = options.gpus if options.gpus is None else max(1, options.gpus)
    return options.ranks_per_node or asked
