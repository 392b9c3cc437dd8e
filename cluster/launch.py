"""The one launcher: in an allocation (sbatch, salloc, submitit), over ssh, or on this machine.

    python -m cluster.launch [options] -- python -m training.train_llm --experiment-name a
    python -m cluster.launch [options] -- python my_script.py

Allocation -> hostfile -> mpirun -> ranks, then the verdict. It runs once, on the first node.
"""

import logging
import os
import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence

from cluster import slurm
from cluster.allocation import Allocation
from cluster.command import launch_command
from cluster.environment import mpirun_environment
from cluster.granted import find_allocation
from cluster.hostfile import hostfile_text
from cluster.logs import tail
from cluster.mpirun import Mpirun, find_mpirun
from cluster.options import OptionParser, add_place_options, run, split_program
from cluster.program import resolve_program
from cluster.records import read_records
from cluster.rendezvous import rendezvous
from cluster.rundir import (
    Attempt,
    create_directories,
    name_run_directory,
    next_attempt,
    only_launcher_of,
    run_directory,
)
from cluster.runfile import record_attempt, write_json
from cluster.supervise import MpirunEnd, supervise
from cluster.verdict import SAVED, Verdict, Witnesses, decide, first_failure, verdict_lines

USAGE = "python -m cluster.launch [options] -- PROGRAM [arguments]"
EPILOG = """\
examples:
  python -m cluster.launch -- python -m training.train_llm --preset demo
  python -m cluster.launch --nodes 2 --ranks-per-node 2 -- python my_script.py
  python -m cluster.launch --hosts a:8,b:8 -x HF_HOME=/data/hf -- python my_script.py

exit status: 0 every rank completed, 64 the request is wrong, 70 the launcher or its environment,
71 a node fell silent, 75 saved (queue it again), else that of the first rank that failed"""


def main(arguments: list[str]) -> int:
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a warning before there is anything to save must not kill the job
    before, program = split_program(arguments)
    options = parser().parse_options(before)
    program = resolve_program(program, options.wdir or ".")
    allocation = find_allocation(options, os.environ)
    mpirun = find_mpirun(options.mpirun, os.environ)
    run_dir = run_directory(program, options.experiment_name, options.output_dir, slurm.job_name(os.environ))
    program = name_run_directory(program, run_dir)
    with only_launcher_of(run_dir):
        return launch(options, program, allocation, mpirun, next_attempt(run_dir, options.output_filename))


def launch(options: Namespace, program: Sequence[str], allocation: Allocation, mpirun: Mpirun, attempt: Attempt) -> int:
    """One attempt: its files, its mpirun, its verdict."""
    environ = mpirun_environment(os.environ, allocation, options.nic, mpirun.has_daemon)
    command = launch_command(options, mpirun, allocation, program, attempt, environ)

    create_directories(attempt)
    write_plan(attempt, allocation, mpirun, command)
    record_attempt(attempt, {"started": time.time(), **slurm.job_facts(os.environ), **allocation.to_json()})
    print(f"{allocation.summary()} · {mpirun.dialect.name} ({mpirun.path}) · attempt {attempt.number} · {attempt.path}")
    print(*allocation.table(), sep="\n", flush=True)

    begun = time.monotonic()
    end = supervise(command, environ, allocation.world_size, attempt)
    verdict = decide(gather_witnesses(attempt, allocation, end))
    return conclude(verdict, attempt, time.monotonic() - begun)


def submitit_job(arguments: list[str]) -> None:
    """What submitit calls in the batch body. SystemExit passes through it: the job's status is the true one."""
    logging.getLogger("submitit").setLevel(logging.WARNING)  # the verdict stays the end of the log
    if status := run(main, arguments):
        sys.exit(status)


def parser() -> OptionParser:
    options = OptionParser("python -m cluster.launch", USAGE, str(__doc__), EPILOG)
    add_place_options(options)
    return options


def write_plan(attempt: Attempt, allocation: Allocation, mpirun: Mpirun, command: Sequence[str]) -> None:
    """Everything that ranks read, and what a person may want to see later."""
    address, port = rendezvous(allocation, os.environ, attempt.number)
    plan = {
        **allocation.to_json(),
        "attempt": attempt.number,
        "run_dir": str(attempt.run_dir),
        "attempt_dir": str(attempt.path),
        "log_dir": str(attempt.log_dir),
        "master_addr": address,
        "master_port": port,
    }
    write_json(attempt.plan, plan)
    attempt.hostfile.write_text(hostfile_text(allocation, mpirun.dialect))
    (attempt.path / "mpirun.txt").write_text(shlex.join(command) + "\n")


def gather_witnesses(attempt: Attempt, allocation: Allocation, end: MpirunEnd) -> Witnesses:
    """Read all records and logs that the verdict rests on."""
    records = read_records(attempt.path)
    guilty = first_failure(records["failed"])
    return Witnesses(
        allocation=allocation,
        **records,
        mpirun_status=end.status,
        mpirun_log_tail=tail(attempt.mpirun_log),
        guilty_log_tail=tail(attempt.log_of(guilty["rank"])) if guilty else "",
        stopped_by=end.stopped_by,
    )


def conclude(verdict: Verdict, attempt: Attempt, seconds: float) -> int:
    """Record the verdict, print it as the last lines, queue the job again where it saved for that."""
    record_attempt(attempt, {"ended": time.time(), "seconds": seconds, "verdict": verdict.to_json()})
    requeue = verdict.kind == SAVED and slurm.in_batch_body(os.environ)
    print(*verdict_lines(verdict, attempt, seconds, requeue), sep="\n", flush=True)
    if requeue and not slurm.requeue(slurm.own_job_id(os.environ)):
        print("Slurm refused to requeue the job: submit the same command again, it goes on", flush=True)
    return verdict.status


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
