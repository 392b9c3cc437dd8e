"""The one launcher: in an allocation (sbatch, salloc, submitit), over ssh, or on this machine.

    python -m cluster.launch [options] -- python -m training.train_llm --experiment-name a
    python -m cluster.launch [options] -- python my_script.py

Allocation -> hostfile -> mpirun -> ranks, then the verdict. It runs once, on the first node.
"""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from cluster import own_job, slurm
from cluster.allocation import Allocation
from cluster.attempt import remember, run_attempt
from cluster.config_file import add_config_options, read_command_line
from cluster.errors import ClusterError, RequestError
from cluster.events import record_event
from cluster.granted import find_allocation
from cluster.last_report import refresh_report
from cluster.lock import only_launcher_of
from cluster.mpirun import Mpirun, find_mpirun
from cluster.notice import FAULT, START, Notices, notice, read_webhook
from cluster.options import DEFAULT_RESTARTS, OptionParser, add_place_options, run
from cluster.program import resolve_program
from cluster.requeue import lost_by, requeue
from cluster.run_file import close_attempt, close_unfinished_attempts, exclude_host, put_damaged_aside, read_run
from cluster.rundir import Attempt, next_attempt, run_directory
from cluster.sequel import END, REQUEUE, RESTART, Sequel, Situation, sequel
from cluster.signals import Requests
from cluster.stage_env import staged
from cluster.terminal import say
from cluster.trainer import is_training, name_run_directory
from cluster.verdict import (
    CANCELLED,
    LAUNCHER_FAILED,
    NODE_LOST,
    PREEMPTED,
    TIME_LIMIT,
    Verdict,
    next_command,
    verdict_lines,
)

RETRY_AFTER = 5.0
"""Seconds before mpirun is started again where it could not start the ranks, or was killed."""
STOPS = (TIME_LIMIT, PREEMPTED, CANCELLED)
USAGE = "python -m cluster.launch [options] -- PROGRAM [arguments]"
EPILOG = """\
examples:
  python -m cluster.launch -- python -m training.train_llm --preset demo
  python -m cluster.launch --nodes 2 --ranks-per-node 2 -- python my_script.py
  python -m cluster.launch --hosts a:8,b:8 -x HF_HOME=/data/hf -- python my_script.py

exit status: 0 every rank completed, 64 the request is wrong, 70 the launcher or its environment,
71 a node was lost, 72 a hang, 73 no progress, 75 saved (queue it again), else that of the first rank that failed"""


def main(arguments: list[str]) -> int:
    requests = Requests(lambda: own_job.why_warned(own_job.detail_now(), time.time()))
    requests.listen()  # a warning before there is anything to save must not kill the job
    options, rest, _ = read_command_line(parser(), arguments)
    wdir = options.wdir or "."
    program = resolve_program(rest, wdir)
    notices = Notices(read_webhook(options.notify) if options.notify else None)
    granted = find_allocation(options, os.environ)
    mpirun = find_mpirun(options.mpirun, os.environ)
    run_dir = run_directory(program, options.experiment_name, options.output_dir, own_job.job_name(os.environ), wdir)
    program = name_run_directory(program, run_dir)
    if options.spare_nodes >= len(granted.hosts):
        raise RequestError(f"--spare-nodes {options.spare_nodes} of {len(granted.hosts)} granted: none would be left")
    with only_launcher_of(run_dir):
        close_logs(run_dir)
        put_damaged_aside(run_dir)
        close_unfinished_attempts(run_dir, own_job.job_facts(os.environ))
        with staged(options.stage_env, program, granted, lambda: requests.stopped_by is not None) as program:
            then, excluded = launch_to_the_end(options, program, granted, mpirun, run_dir, requests, notices)
            if then.kind != REQUEUE:  # the time may be short, and the next attempt writes one
                refresh_report(run_dir, program)
    if then.kind == REQUEUE:
        job_id, restart_count = own_job.own_id(os.environ), own_job.restart_count(os.environ)
        lost = [*lost_by(os.environ["SLURM_JOB_ID"], read_run(run_dir)["attempts"]), *excluded]
        if why_not := requeue(job_id, restart_count, len(granted.hosts), lost):
            record_event(run_dir, "requeue refused", why=why_not)
            say([f"not requeued: {why_not}; submit the same command again, it goes on"])
    notices.close()
    return then.verdict.status


def launch_to_the_end(
    options: Namespace,
    program: list[str],
    granted: Allocation,
    mpirun: Mpirun,
    run_dir: Path,
    requests: Requests,
    notices: Notices,
) -> tuple[Sequel, list[str]]:
    """Attempt after attempt, as long as another one promises something: what follows the last, and hosts to avoid."""
    needed = len(granted.hosts) - options.spare_nodes
    restarts = options.restarts if options.restarts is not None else DEFAULT_RESTARTS if is_training(program) else 0
    launch_id = os.environ.get("SLURM_JOB_ID") or f"{time.time():.0f}"
    excluded: list[str] = []
    while True:
        allocation = granted.without(excluded, needed)
        attempt = next_attempt(run_dir, options.output_filename)
        about = partial(notice, run_dir=run_dir, attempt=attempt.number, summary=allocation.summary())
        notices.tell(about(START, verdict=None))
        try:
            verdict, end = run_attempt(options, program, allocation, mpirun, attempt, requests, launch_id)
        except ClusterError as error:
            verdict = Verdict(LAUNCHER_FAILED, error.status, str(error))
            with suppress(OSError):  # the run directory has gone, or its disk is full
                close_attempt(attempt, verdict)
            notices.tell(about(END, verdict=verdict._asdict()))
            notices.close()
            raise
        stopped_for = None if requests.stopped_by is None else verdict.kind if verdict.kind in STOPS else CANCELLED
        situation = Situation(
            restarts=restarts,
            in_batch_body=own_job.in_batch_body(os.environ),
            hosts_left=hosts_left(granted, excluded, verdict),
            hosts_needed=needed,
            warned=requests.warned_or_to_warn,
            stopped_for=stopped_for,
            mpirun_killed=end.killed,
            cut_off=end.cut_off,
        )
        then = sequel(verdict, read_run(run_dir)["attempts"], situation)
        if then.exclude:
            excluded.append(then.exclude)
            with suppress(OSError):  # a full disk
                exclude_host(run_dir, then.exclude)
        notices.tell(about(FAULT if then.kind == RESTART else then.kind, verdict=then.verdict._asdict()))
        if then.kind != RESTART:
            conclude(then, attempt, excluded, end.seconds)
            return then, excluded
        say(verdict_lines(verdict, attempt, end.seconds, requeue=False))
        say(["── launched again from the newest checkpoint"])
        record_event(run_dir, RESTART, attempt=attempt.number, after=verdict.kind, exclude=then.exclude)
        if verdict.kind == LAUNCHER_FAILED:
            time.sleep(RETRY_AFTER)
        if granted.source == "slurm":
            slurm.wait_for_controller(lambda: requests.stopped_by is not None)


def hosts_left(granted: Allocation, excluded: Sequence[str], verdict: Verdict) -> int:
    """Hosts for another attempt in this allocation; none without the first one, on which this launcher itself runs."""
    lost = verdict.host if verdict.kind == NODE_LOST else None
    if lost == granted.hosts[0].name:
        return 0
    return sum(host.name not in (*excluded, lost) for host in granted.hosts)


def parser() -> OptionParser:
    options = OptionParser("python -m cluster.launch", USAGE, str(__doc__), EPILOG)
    add_config_options(options)
    add_place_options(options)
    return options


def close_logs(run_dir: Path) -> None:
    """Close the logs of jobs to others, this one's too: Slurm has made them with the user's umask."""
    for log in run_dir.glob("*.log"):
        with suppress(OSError):
            log.chmod(0o600)


def conclude(then: Sequel, attempt: Attempt, excluded: Sequence[str], seconds: float) -> None:
    """Record the final verdict, and print it as the last lines."""
    verdict, requeue, in_slurm = then.verdict, then.kind == REQUEUE, "SLURM_JOB_ID" in os.environ
    advice = next_command(verdict, attempt, requeue, in_slurm)
    remember(attempt, {"verdict": {**verdict._asdict(), "next": advice}})
    if requeue:
        record_event(attempt.run_dir, REQUEUE, attempt=attempt.number, exclude=list(excluded))
    say(verdict_lines(verdict, attempt, seconds, requeue, in_slurm))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
