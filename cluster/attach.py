"""Into a running run: a shell on one of its nodes, or the Python stacks of its ranks.

python -m cluster attach a                 a shell on its first node
python -m cluster attach a --rank 3        on the node of rank 3
python -m cluster attach a --stacks        what every rank does now; --rank and --node choose some
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cluster import slurm
from cluster.allocation import Allocation
from cluster.channel import ALL_STACKS
from cluster.environment import with_project
from cluster.errors import COMPLETE, LauncherError, RequestError
from cluster.lock import check_is_here, read_holder
from cluster.options import OptionParser, add_output_dir, at_least, run
from cluster.private import check_private
from cluster.run_file import read_plan
from cluster.run_state import RUNNING, look_now
from cluster.rundir import attempt_of, newest_attempt
from cluster.runs import find_run
from cluster.stacks import from_lines, stacks_here
from cluster.terminal import plain

USAGE = "python -m cluster attach RUN [options]"
EPILOG = """\
The question for stacks may wake a rank from the call in which it waits, such as a sleep.
exit status: the shell's, or 0; 64 the run does not run, or has no such rank or node; 70 its nodes cannot be reached"""

STACKS_WITHIN = 60.0
"""Seconds for the nodes to answer; a busy controller starts a step late."""
STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waits for a disk or driver", "Z": "has ended", "": "gone"}
"""The kernel's letters that say why there is no answer."""


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    if options.json and not options.stacks:
        raise RequestError("--json is for --stacks, a shell has none: give both")
    run_dir = find_run(options.run, Path(options.output_dir))
    check_private(run_dir)
    found, state = look_now(run_dir)
    if state.name != RUNNING:
        raise RequestError(f"{run_dir.name} is not running: {state}")
    attempt = attempt_of(run_dir, newest_attempt(run_dir))
    plan = read_plan(attempt)
    if plan is None:
        raise LauncherError(f"{run_dir.name} is just starting: try again in a moment")
    allocation = plan.allocation
    hosts = hosts_of(allocation, options.rank, options.node)
    if not options.stacks:
        open_shell(shell_command(options, found.job_id, allocation.source, hosts[0]), hosts[0])
    if allocation.source == "local" and (holder := read_holder(run_dir)):
        check_is_here(holder, run_dir, f"python -m cluster attach {shlex.quote(str(run_dir))} --stacks")
    told = ask_nodes(options, found.job_id, allocation, hosts, attempt.path)
    if options.json:
        wanted = [one for one in told if options.rank in (None, one["rank"])]
        print(json.dumps(sorted(wanted, key=lambda one: one["rank"]), indent=1))  # nodes answer in any order
    else:
        print(plain("\n\n".join(stack_lines(told, allocation, hosts, options.rank))))
    return COMPLETE


def parser() -> OptionParser:
    options = OptionParser("python -m cluster attach", USAGE, str(__doc__), EPILOG)
    options.add_argument("run", metavar="RUN", help="name of an experiment, run directory or job id")
    which = options.add_mutually_exclusive_group()
    which.add_argument("--rank", type=at_least(0), metavar="R", help="the node of this rank; with --stacks it alone")
    which.add_argument("--node", metavar="HOST", help="this node")
    options.add_argument("--stacks", action="store_true", help="print Python stacks, rank by rank, and no shell")
    options.add_argument("--json", action="store_true", help="with --stacks: a JSON list, one object a rank")
    options.add_argument("--ssh", metavar="COMMAND", default="ssh", help="for machines without a scheduler")
    add_output_dir(options)
    return options


def hosts_of(allocation: Allocation, rank: int | None, node: str | None) -> list[str]:
    """The hosts that are meant, each once, in the order of their ranks. Raises `RequestError` where there is none."""
    names = list(dict.fromkeys(host.name for host in allocation.hosts))
    if rank is not None:
        if rank >= allocation.world_size:
            raise RequestError(f"there are ranks 0 to {allocation.world_size - 1}, no rank {rank}")
        return [allocation.place(rank).host]
    if node is not None and node not in names:
        raise RequestError(f"{node} is no node of this run: it has {', '.join(names[:8])}{', …' * (len(names) > 8)}")
    return names if node is None else [node]


def shell_command(options: Namespace, job_id: str | None, source: str, host: str) -> list[str]:
    """What opens the shell. Raises `RequestError` for a run on this machine."""
    if source == "slurm" and job_id:
        return [*slurm.step_command(job_id, [host], shell=True), os.environ.get("SHELL", "/bin/bash")]
    if source == "ssh":
        return [*shlex.split(options.ssh), "-t", host]
    raise RequestError(
        "this run's ranks are on the machine of its launcher: a shell there is all it takes; or --stacks"
    )


def open_shell(command: Sequence[str], host: str) -> NoReturn:
    """Become the shell."""
    if shutil.which(command[0]) is None:
        raise LauncherError(f"no {command[0]} on PATH: attach from a login node of the cluster")
    print(f"a shell on {host}: {shlex.join(command)}", flush=True)
    os.execvpe(command[0], list(command), own_environment())


def ask_nodes(
    options: Namespace, job_id: str | None, allocation: Allocation, hosts: Sequence[str], attempt_dir: Path
) -> list[dict[str, Any]]:
    """What the ranks on these hosts answer. Raises `LauncherError` where the hosts cannot be reached."""
    letters = ALL_STACKS // sum(host.ranks for host in allocation.hosts if host.name in hosts)
    if allocation.source == "local":
        return stacks_here(attempt_dir, letters)
    there = [sys.executable, "-m", "cluster.stacks", str(attempt_dir), str(letters)]
    environ = own_environment()
    if allocation.source == "slurm" and job_id:
        return answers([*slurm.step_command(job_id, hosts), *there], environ)
    remote = shlex.join(["env", f"PYTHONPATH={environ.get('PYTHONPATH', '')}", *there])
    return [told for host in hosts for told in answers([*shlex.split(options.ssh), host, remote], environ)]


def answers(command: Sequence[str], environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the ranks told, by a command that runs `cluster.stacks` on their nodes."""
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STACKS_WITHIN
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherError(f"{command[0]} did not reach the nodes ({error})") from error
    told = from_lines(done.stdout)
    if done.returncode and not told:
        raise LauncherError(f"{command[0]}: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
    return told


def stack_lines(
    told: Sequence[Mapping[str, Any]], allocation: Allocation, hosts: Sequence[str], rank: int | None
) -> list[str]:
    """One block for each rank of those hosts, in order; the stacks are faulthandler's, the innermost call first."""
    by_rank = {one["rank"]: one for one in told}
    blocks = []
    for place in allocation.rank_map():
        if place.host in hosts and rank in (None, place.rank):
            one = by_rank.get(place.rank)
            where = f"rank {place.rank} on {place.host}"
            if one is None:
                blocks.append(f"{where}: has not begun, or has ended")
            elif one["stacks"]:
                blocks.append(f"{where}:\n{one['stacks'].rstrip()}")
            else:
                blocks.append(f"{where}: no answer ({STATES.get(one['state'], 'its program is no Python')})")
    return blocks


def own_environment() -> dict[str, str]:
    """This environment without a surrounding job's words, which would change what srun does, and with the project."""
    kept = ("SLURM_CONF", "SLURM_CONF_SERVER")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in kept}
    return with_project(outside)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
