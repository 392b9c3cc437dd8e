"""What a request would run, or what a job runs: batch script, hostfile, mpirun's command, environment, rank map.

python -m cluster explain --nodes 2 --gpus 8 -- -e a                      a request, as for submit
python -m cluster explain --nodelist 'n[01-16]' --tasks-per-node '8(x16)' an allocation, by Slurm's own words for it
python -m cluster explain 12                                              a job, run or run directory

Starts nothing, writes nothing.
"""

import json
import os
import re
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from cluster import slurm
from cluster.allocation import Allocation, RankPlace, from_slurm, parse_granted_gpus
from cluster.command import launch_command, launch_environment
from cluster.config_file import read_command_line
from cluster.environment import default_omp_threads, forwarded_names, rank_environment
from cluster.errors import COMPLETE, LauncherError, RequestError
from cluster.here import allocation_here
from cluster.hostfile import hostfile_text
from cluster.mpirun import HYDRA, OPEN_MPI_4, OPEN_MPI_5, Mpirun, find_mpirun
from cluster.nodelist import expand_nodelist
from cluster.options import OptionParser, run
from cluster.preparation import preparation_script
from cluster.records import read_records
from cluster.request import experiment_directory, goes_to_slurm, program_asked_for, resource_plan
from cluster.request import parser as submit_parser
from cluster.run_file import read_plan
from cluster.run_state import look
from cluster.rundir import DEFAULT_OUTPUT_DIR, attempt_of, newest_attempt, next_attempt
from cluster.runs import find_run
from cluster.sbatch import training_script
from cluster.secret import MASK, masked, secret_values
from cluster.terminal import line, plain
from cluster.trainer import name_run_directory

USAGE = """python -m cluster explain [options as for submit] -- [arguments of training.train_llm]
       python -m cluster explain [options] RUN"""
EPILOG = """\
A request takes the options of submit (python -m cluster submit --help).

exit status: 0; 64 the request is wrong, also where sbatch would refuse it; 70 this place cannot tell"""

OWN_WORDS = {"json": "one JSON object, instead of lines for people"}
"""The option of submit that the help shows."""
DIALECTS = {"openmpi4": OPEN_MPI_4, "openmpi5": OPEN_MPI_5, "hydra": HYDRA}


class Explanation(NamedTuple):
    """All that is shown. A part is empty or None where there is none, or where it cannot be known from here."""

    allocation: Allocation
    hostfile: str
    dialect: str
    binding: str
    before: str | None = None
    """The batch script of the job that makes the tokens first (`--prepare-first`)."""
    script: str | None = None
    test_only: slurm.TestOnly | None = None
    """What sbatch itself says of the script."""
    command: str = ""
    environment: Mapping[str, str] = MappingProxyType({})
    """Of every rank, secrets masked."""
    first_rank: Mapping[str, str] = MappingProxyType({})
    """What rank 0 is given of its own."""
    records: Sequence[Mapping[str, Any]] = ()
    """What the ranks of a job said themselves as they began."""


def main(arguments: list[str]) -> int:
    options, rest, _ = read_command_line(parser(), arguments)
    explanation = explain_run(options) if options.run_or_job else explain_request(options, rest)
    print(json.dumps(to_json(explanation), indent=1) if options.json else plain("\n".join(lines(explanation))))
    return RequestError.status if words_of_sbatch(explanation.test_only) == "refuses it" else COMPLETE


def parser() -> OptionParser:
    """The options of submit, which its own help shows, and a few."""
    options = submit_parser().reworded("python -m cluster explain", USAGE, str(__doc__), EPILOG, OWN_WORDS)
    options.add_argument("run_or_job", nargs="?", metavar="RUN", help="a job id, an experiment's name, a run directory")
    options.add_argument(
        "--tasks-per-node",
        metavar="COUNTS",
        help="with --nodelist: SLURM_TASKS_PER_NODE, such as '8(x16)' (default: 1 each, or one for each GPU)",
    )
    options.add_argument(
        "--mpi", choices=DIALECTS, help="show the command for this mpirun (default: the one that is here)"
    )
    return options


def explain_request(options: Namespace, rest: list[str]) -> Explanation:
    """What submit would do with the same options."""
    program = program_asked_for(options, rest)
    run_dir = experiment_directory(options, program)
    before = script = None
    if options.nodelist and not options.nodes:
        allocation = pasted(options.nodelist, options.tasks_per_node, options.gpus, options.ranks_per_node)
    elif options.tasks_per_node:
        raise RequestError("--tasks-per-node says how an allocation was granted: give its --nodelist, and no --nodes")
    elif options.cluster == "slurm" or goes_to_slurm(options):
        plan = resource_plan(options)
        allocation, script = plan.expected_allocation(), training_script(plan, run_dir)
        if options.prepare_first:
            before = preparation_script(options, plan, program, run_dir)
    else:
        allocation = allocation_here(options)
    mpirun = chosen_mpirun(options)
    attempt = next_attempt(run_dir, options.output_filename)
    environ = launch_environment(options, mpirun, allocation)
    program = name_run_directory(program, run_dir)
    command = launch_command(options, mpirun, allocation, program, attempt, environ)
    names = forwarded_names(environ, [*(name for name, _ in options.forward), *options.secret])
    secrets = secret_values(options.secret, os.environ)
    plan_of_ranks = {
        "master_addr": "127.0.0.1" if allocation.source == "local" else allocation.hosts[0].name,
        "master_port": "(chosen by the launcher)",
        "store_token": "(drawn by the launcher)",
        "attempt_dir": str(attempt.path),
        "run_dir": str(run_dir),
        "attempt": attempt.number,
    }
    return Explanation(
        allocation,
        hostfile_text(allocation, mpirun.dialect),
        mpirun.dialect.name,
        options.bind_to,
        before,
        script,
        slurm.test_only(script) if script and shutil.which("sbatch") else None,
        shlex.join(command),
        {name: masked(name, environ[name], secrets) for name in names if name in environ},
        given_to_first(plan_of_ranks, allocation),
    )


def chosen_mpirun(options: Namespace) -> Mpirun:
    """The mpirun asked for, or the one that is here; Open MPI 5 where there is none."""
    try:
        found = find_mpirun(options.mpirun, os.environ)
    except LauncherError:
        if options.mpirun:
            raise
        found = Mpirun("mpirun", OPEN_MPI_5)
    if options.mpi and DIALECTS[options.mpi] is not found.dialect:
        return Mpirun("mpirun", DIALECTS[options.mpi])
    return found


def pasted(nodelist: str, tasks: str | None, gpus: int | None, ranks_per_node: int | None) -> Allocation:
    """The allocation that Slurm describes so; `gpus` are those of each node."""
    names = expand_nodelist(nodelist)
    environ = {
        "SLURM_JOB_NODELIST": nodelist,
        "SLURM_TASKS_PER_NODE": tasks or f"{ranks_per_node or 1}(x{len(names)})",
    }
    return from_slurm(environ, dict.fromkeys(names, gpus or 0), ranks_per_node)


def explain_run(options: Namespace) -> Explanation:
    """The newest attempt of a run as its files tell it; a job that has had none yet by Slurm's words."""
    try:
        run_dir = find_run(options.run_or_job, Path(options.output_dir or DEFAULT_OUTPUT_DIR))
    except RequestError:
        detail = slurm.job_detail(options.run_or_job, slurm.SOON) if options.run_or_job.isdecimal() else None
        if detail is None:
            raise
        return explain_job(options, slurm.record_of(detail, options.run_or_job))
    attempts = (attempt_of(run_dir, number) for number in range(newest_attempt(run_dir), 0, -1))
    attempt, plan = next(((one, plan) for one in attempts if (plan := read_plan(one))), (None, None))
    if attempt is None or plan is None:
        raise RequestError(f"{run_dir.name} has had no attempt yet: python -m cluster explain JOB_ID, or its request")
    allocation = plan.allocation
    command = attempt.command.read_text().strip()
    words = shlex.split(command)
    names, secrets = forwarded_by(words), secret_values(plan.facts.get("secrets", ()), os.environ)
    entries = look(run_dir).attempts
    job_id = next((entry.get("job_id") for entry in entries if entry["attempt"] == attempt.number), None)
    return Explanation(
        allocation,
        attempt.hostfile.read_text(),
        "mpirun",
        bound_to(words),
        script=slurm.batch_script_of(job_id) if job_id else None,
        command=command,
        environment={
            name: masked(name, os.environ[name], secrets) if name in os.environ else "(not set here)" for name in names
        },
        first_rank=given_to_first({**plan.facts, "store_token": MASK}, allocation),
        records=[record for record in read_records(attempt.path) if record["state"] == "started"],
    )


def explain_job(options: Namespace, detail: str) -> Explanation:
    """A job that has left no run directory yet: what its launcher will find."""
    allocation = allocation_of_job(detail, options.ranks_per_node)
    mpirun = chosen_mpirun(options)
    hostfile, script = hostfile_text(allocation, mpirun.dialect), slurm.batch_script_of(options.run_or_job)
    return Explanation(allocation, hostfile, mpirun.dialect.name, options.bind_to, script=script)


def allocation_of_job(detail: str, ranks_per_node: int | None) -> Allocation:
    """From ``scontrol show job -d``; a job that still waits gets stand-in host names.

    Raises `RequestError` where Slurm has not said yet how many tasks each node will have.
    """
    facts = slurm.facts_of(detail, "NodeList|NumNodes|NumTasks|NtasksPerN:B:S:C|TresPerNode")
    nodes = int(facts.get("NumNodes", "1").partition("-")[0])
    nodelist = facts.get("NodeList", "(null)")
    if nodelist == "(null)":
        names = [f"node{number}" for number in range(1, nodes + 1)]
        asked = re.search(r"gpu(?::[^:,=()]+)?[:=](\d+)", facts.get("TresPerNode", ""))
        gpus = dict.fromkeys(names, int(asked[1]) if asked else 0)
    else:
        names, gpus = expand_nodelist(nodelist), parse_granted_gpus(detail)
    per_node, tasks = facts.get("NtasksPerN:B:S:C", "").partition(":")[0], int(facts.get("NumTasks", nodes))
    if per_node.isdecimal() and int(per_node):
        each = int(per_node)
    elif tasks % len(names) == 0 or ranks_per_node or any(gpus.values()):
        each = max(1, tasks // len(names))
    else:
        raise RequestError(
            f"{tasks} tasks on {len(names)} nodes: Slurm says how they are spread only in the job itself"
        )
    environ = {"SLURM_JOB_NODELIST": ",".join(names), "SLURM_TASKS_PER_NODE": f"{each}(x{len(names)})"}
    return from_slurm(environ, gpus, ranks_per_node)


def given_to_first(plan: Mapping[str, Any], allocation: Allocation) -> dict[str, str]:
    """What rank 0's watcher adds to its environment."""
    place = allocation.place(0)
    threads = str(default_omp_threads(allocation.hosts[0]))
    return {**rank_environment(plan, allocation, place), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}


def forwarded_by(command: Sequence[str]) -> list[str]:
    """Names of the variables that an mpirun command line forwards, in either dialect."""
    names = [name for flag, name in pairwise(command) if flag == "-x"]
    for flag, value in pairwise(command):
        if flag == "-genvlist":
            names += value.split(",")
    return names


def bound_to(command: Sequence[str]) -> str:
    """What an mpirun command line binds to."""
    for flag, value in pairwise(command):
        if flag.lstrip("-") == "bind-to":
            return value
    return "none"


def cpus_of(place: RankPlace, allocation: Allocation, binding: str) -> str | None:
    """The CPU that mpirun binds a rank to, among those of the job on its host; None where it does not bind.

    mpirun goes through a host's cores in the order of its ranks; simulated nodes share one host.
    """
    if binding == "none":
        return None
    if binding not in ("core", "hwthread"):
        return f"a {binding}"
    return f"{binding} {place.rank if allocation.source == 'local' else place.local_rank}"


def words_of_sbatch(said: slurm.TestOnly | None) -> str:
    """Whether sbatch takes the script; a controller that cannot be reached says nothing about it."""
    if said is None or (not said.accepted and (slurm.is_down(said.words) or "fetch_config" in said.words)):
        return "gives no answer"
    return "accepts it" if said.accepted else "refuses it"


def map_lines(explanation: Explanation) -> list[str]:
    """The rank map: rank, node, host, local rank, GPU, and CPUs where ranks are bound."""
    allocation, binding = explanation.allocation, explanation.binding
    head, *rows = allocation.table(longest=allocation.world_size)
    if binding == "none":
        return [head, *rows]
    cpus = [cpus_of(place, allocation, binding) for place in allocation.rank_map()]
    return [f"{head}  CPUs", *(f"{row}  {cpu}" for row, cpu in zip(rows, cpus, strict=True))]


def lines(explanation: Explanation) -> list[str]:
    """All of it for people; what is no part of a file begins with #."""
    shown = [f"# plan: {explanation.allocation.summary()}", ""]
    if explanation.before:
        shown += [
            "# batch script of the job that goes first; the other one waits for it",
            explanation.before.rstrip(),
            "",
        ]
    if explanation.script:
        shown += ["# batch script", explanation.script.rstrip(), ""]
    if said := explanation.test_only:
        shown += [f"# sbatch --test-only {words_of_sbatch(said)}: {said.words}", ""]
    shown += ["# hostfile", explanation.hostfile]
    if explanation.command:
        shown += [f"# {explanation.dialect}", explanation.command, ""]
    if explanation.environment:
        shown += ["# environment of every rank: forwarded by name, with the values of this machine"]
        shown += [*(f"{name}={line(value)}" for name, value in explanation.environment.items()), ""]
    if explanation.first_rank:
        own = (f"{name}={line(value)}" for name, value in explanation.first_rank.items())
        shown += ["# and of rank 0 alone", *own, ""]
    shown += ["# rank map", *map_lines(explanation)]
    if explanation.records:
        shown += ["", "# as the ranks themselves said when they began"]
        for record in sorted(explanation.records, key=lambda record: record["rank"]):
            gpu = "-" if record.get("gpu") is None else record["gpu"]
            shown.append(f"rank {record['rank']} on {record['host']}, GPU {gpu}, process {record['pid']}")
    return shown


def to_json(explanation: Explanation) -> dict[str, Any]:
    allocation = explanation.allocation
    return {
        **explanation._asdict(),
        "allocation": allocation.to_json(),
        "environment": dict(explanation.environment),
        "first_rank": dict(explanation.first_rank),
        "summary": allocation.summary(),
        "test_only": explanation.test_only and explanation.test_only._asdict(),
        "ranks": [
            {**place._asdict(), "cpus": cpus_of(place, allocation, explanation.binding)}
            for place in allocation.rank_map()
        ],
    }


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
