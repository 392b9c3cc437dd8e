"""The one launcher: in an allocation (sbatch, salloc, submitit), over ssh, or on this machine.

    python -m cluster.launch [options] -- python -m training.train_llm --experiment-name a
    python -m cluster.launch [options] -- python my_script.py

Allocation -> hostfile -> mpirun -> ranks, then the verdict. It runs once, on the first node.
"""

import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.allocation import Allocation
from cluster.blame import first_failure
from cluster.channel import Listener, own_address
from cluster.command import planned_launch
from cluster.config_file import add_config_options, read_command_line
from cluster.errors import RequestError
from cluster.events import record_event
from cluster.goodput import account
from cluster.granted import find_allocation
from cluster.hostfile import hostfile_text
from cluster.last_report import refresh_report
from cluster.lock import only_launcher_of
from cluster.logs import say, tail
from cluster.machine import is_this_host
from cluster.mpirun import Mpirun, find_mpirun
from cluster.notice import END, FAULT, START, Notices, notice, read_webhook
from cluster.options import OptionParser, add_place_options, run
from cluster.private import write_private
from cluster.program import resolve_program
from cluster.records import Records
from cluster.rendezvous import Rendezvous, rendezvous
from cluster.rundir import Attempt, create_directories, next_attempt, run_directory, unwritable
from cluster.runfile import (
    close_unfinished_attempts,
    exclude_host,
    put_damaged_aside,
    read_run,
    record_attempt,
    write_json,
)
from cluster.secret import secret_values, without
from cluster.sequel import DEFAULT_RESTARTS, REQUEUE, RESTART, Sequel, Situation, sequel
from cluster.signals import Requests
from cluster.stage_env import staged
from cluster.supervise import End, Supervision
from cluster.trainer import is_training, name_run_directory
from cluster.verdict import (
    CANCELLED,
    COMPLETED,
    LAUNCHER_FAILED,
    NODE_LOST,
    PREEMPTED,
    SAVED,
    TIME_LIMIT,
    Verdict,
    Witnesses,
    decide,
    next_command,
    verdict_lines,
)
from cluster.watchdog import DEFAULT_HANG_TIMEOUT, RankView

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
    requests = Requests(why_warned)
    requests.listen()  # a warning before there is anything to save must not kill the job
    options, rest, _ = read_command_line(parser(), arguments)
    program = resolve_program(rest, options.wdir or ".")
    notices = Notices(read_webhook(options.notify) if options.notify else None)
    granted = find_allocation(options, os.environ)
    mpirun = find_mpirun(options.mpirun, os.environ)
    run_dir = run_directory(program, options.experiment_name, options.output_dir, slurm.job_name(os.environ))
    program = name_run_directory(program, run_dir)
    if options.spare_nodes >= len(granted.hosts):
        raise RequestError(f"--spare-nodes {options.spare_nodes} of {len(granted.hosts)} granted: none would be left")
    with only_launcher_of(run_dir):
        close_logs(run_dir)
        put_damaged_aside(run_dir)
        close_unfinished_attempts(run_dir, os.environ.get("SLURM_JOB_ID"))
        with staged(options.stage_env, program, granted, lambda: requests.stopped_by is not None) as program:
            then, excluded = launch_to_the_end(options, program, granted, mpirun, run_dir, requests, notices)
            if then.kind != REQUEUE:  # the time may be short, and the next attempt writes one
                refresh_report(run_dir, program)
    if then.kind == REQUEUE:
        job_id, restart_count = slurm.own_job_id(os.environ), slurm.restart_count(os.environ)
        lost = [*lost_by(os.environ["SLURM_JOB_ID"], read_run(run_dir)["attempts"]), *excluded]
        if why_not := slurm.requeue(job_id, restart_count, len(granted.hosts), lost):
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
        about = partial(
            notice, experiment=run_dir.name, run_dir=run_dir, attempt=attempt.number, summary=allocation.summary()
        )
        notices.tell(about(START, verdict=None))
        verdict, end = launch(options, program, allocation, mpirun, attempt, requests, launch_id)
        stopped_for = None if requests.stopped_by is None else verdict.kind if verdict.kind in STOPS else CANCELLED
        situation = Situation(
            restarts=restarts,
            in_batch_body=slurm.in_batch_body(os.environ),
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
        event = {RESTART: FAULT, REQUEUE: REQUEUE}.get(then.kind, END)
        notices.tell(about(event, verdict=then.verdict.to_json()))
        if then.kind != RESTART:
            conclude(then, attempt, excluded, end.seconds)
            return then, excluded
        say(
            [
                *verdict_lines(verdict, attempt, end.seconds, requeue=False),
                "── launched again from the newest checkpoint",
            ]
        )
        record_event(run_dir, "restart", attempt=attempt.number, after=verdict.kind, exclude=then.exclude)
        if verdict.kind == LAUNCHER_FAILED:
            time.sleep(RETRY_AFTER)
        if granted.source == "slurm":
            slurm.wait_for_controller(lambda: requests.stopped_by is not None)


def lost_by(job_id: str, attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hosts that this job has lost so far, also before it was queued again."""
    verdicts = [attempt.get("verdict", {}) for attempt in attempts if attempt.get("job_id") == job_id]
    return [verdict["host"] for verdict in verdicts if verdict.get("kind") == NODE_LOST and verdict.get("host")]


def remember(attempt: Attempt, facts: Mapping[str, Any]) -> None:
    """Write to run.json; where that cannot be, as on a full disk, the verdict still ends the log."""
    try:
        record_attempt(attempt, facts)
    except OSError as error:
        say([f"warning: run.json in {attempt.run_dir} cannot be written ({error.strerror})"])


def hosts_left(granted: Allocation, excluded: Sequence[str], verdict: Verdict) -> int:
    """Hosts for another attempt in this allocation; none without the first one, on which this launcher itself runs."""
    if verdict.kind != NODE_LOST:
        return len(granted.without(excluded, len(granted.hosts)).hosts)
    if verdict.host == granted.hosts[0].name:
        return 0
    return len(granted.without([*excluded, verdict.host or ""], len(granted.hosts)).hosts)


def launch(
    options: Namespace,
    program: Sequence[str],
    allocation: Allocation,
    mpirun: Mpirun,
    attempt: Attempt,
    requests: Requests,
    launch_id: str,
) -> tuple[Verdict, End]:
    """One attempt: its files, its mpirun, its verdict."""
    command, environ = planned_launch(options, mpirun, allocation, program, attempt)
    address = own_address([host.name for host in allocation.hosts], is_this_host, options.nic)
    listener = Listener(address, allocation.world_size)
    meet = rendezvous(allocation, os.environ, attempt.number, address)

    create_directories(attempt)
    begun: dict[str, Any] = {"started": time.time(), "queued": queued_at(attempt), "launch": launch_id}
    begun |= {**slurm.job_facts(os.environ), **allocation.to_json()}
    try:
        write_plan(attempt, allocation, mpirun, command, listener, meet, options.secret)
        record_attempt(attempt, begun)
    except OSError as error:
        raise unwritable(attempt.run_dir, error) from error
    what = f"{allocation.summary()} · {mpirun.dialect.name} ({mpirun.path})"
    say([f"{what} · attempt {attempt.number} · {attempt.path}", *allocation.table()])

    def on_event(event: str, **facts: Any) -> None:
        record_event(attempt.run_dir, event, attempt=attempt.number, **facts)

    secrets = secret_values(options.secret, environ)
    supervision = Supervision(
        command,
        environ,
        secrets,
        allocation,
        attempt,
        listener,
        requests,
        options.hang_timeout or DEFAULT_HANG_TIMEOUT,
        on_event,
    )
    with meet.held:
        end = supervision.run()
    if cut_off(allocation, end.lost_hosts):
        end = end._replace(lost_hosts=(allocation.hosts[0].name,), cut_off=True)
    verdict = decide(gather_witnesses(attempt, allocation, supervision.records, end, requests))
    verdict = replace(verdict, summary=without(verdict.summary, secrets), detail=without(verdict.detail, secrets))
    ended = {
        "ended": time.time(),
        "seconds": end.seconds,
        "steps": steps_of(end.views),
        "verdict": verdict.to_json(),
        "accounting": account(
            begun["queued"],
            begun["started"],
            time.time(),
            next((view.beat for view in end.views if view.rank == 0), None),
            kept=verdict.kind in (COMPLETED, SAVED),
        ),
    }
    remember(attempt, ended)
    on_event("verdict", kind=verdict.kind, rank=verdict.rank, host=verdict.host, step=verdict.step)
    return verdict, end


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


def write_plan(
    attempt: Attempt,
    allocation: Allocation,
    mpirun: Mpirun,
    command: Sequence[str],
    listener: Listener,
    meet: Rendezvous,
    secrets: Sequence[str],
) -> None:
    """Everything that ranks read, and what a person may want to see later."""
    plan = {
        **allocation.to_json(),
        "attempt": attempt.number,
        "run_dir": str(attempt.run_dir),
        "attempt_dir": str(attempt.path),
        "log_dir": str(attempt.log_dir),
        "master_addr": meet.address,
        "master_port": meet.port,
        "store_token": os.urandom(16).hex(),
        "launcher": [listener.address, listener.port],
        "token": listener.token,
        "secrets": list(secrets),
    }
    write_json(attempt.plan, plan, indent=None)  # every rank reads it
    write_private(attempt.mpirun_log, "")
    write_private(attempt.hostfile, hostfile_text(allocation, mpirun.dialect))
    write_private(attempt.command, shlex.join(command) + "\n")


def gather_witnesses(
    attempt: Attempt, allocation: Allocation, records: Records, end: End, requests: Requests
) -> Witnesses:
    """All that the verdict rests on."""
    guilty = first_failure(records.of("failed"))
    detail = own_job() if requests.stopped_by else None
    stop_reason = slurm.why_stopped(detail, slurm.restart_count(os.environ)) if detail else None
    lost = list(end.lost_hosts)
    stopped_by = requests.stopped_by
    if stop_reason == PREEMPTED and requests.why_warned is None:
        # Queued again by Slurm, and not to make room: perhaps it has lost a node, before anybody here noticed
        lost = lost or slurm.down_hosts([host.name for host in allocation.hosts])
        stopped_by = None if lost else stopped_by
    return Witnesses(
        allocation=allocation,
        started=records.of("started"),
        complete=records.of("complete"),
        saved=records.of("saved"),
        failed=records.of("failed"),
        mpirun_status=end.status,
        mpirun_log_tail=tail(attempt.mpirun_log),
        guilty_log_tail=tail(attempt.log_of(guilty["rank"])) if guilty else "",
        stopped_by=stopped_by,
        stop_reason=stop_reason,
        warned_by=requests.why_warned,
        hang=end.hang,
        lost_hosts=lost,
        vanished=end.vanished,
        unfit=end.unfit,
        last_steps={view.rank: view.step for view in end.views if view.step is not None},
        launcher_stopped_mpirun=not end.killed,
    )


def cut_off(allocation: Allocation, lost_hosts: Sequence[str]) -> bool:
    """Whether it is this host that lost the network, not the others: all of them are silent, and Slurm is too."""
    others = {host.name for host in allocation.hosts[1:]}
    in_slurm = slurm.in_batch_body(os.environ)
    return bool(others) and others == set(lost_hosts) and in_slurm and not slurm.controller_answers()


def queued_at(attempt: Attempt) -> float | None:
    """When the job began to wait for this launch; None away from Slurm and for a second attempt in one allocation.

    A job that was queued again keeps its first EligibleTime: it waits since the attempt before ended.
    """
    here = slurm.job_facts(os.environ)
    before = [entry for entry in read_run(attempt.run_dir)["attempts"] if entry["attempt"] < attempt.number]
    if not here or (before and all(before[-1].get(name) == value for name, value in here.items())):
        return None
    queued = slurm.queued_at(own_job())
    same_job = before and before[-1].get("job_id") == here["job_id"]
    return max(queued, before[-1].get("ended", queued)) if queued is not None and same_job else queued


def why_warned() -> str:
    return slurm.why_warned(own_job(), time.time())


def own_job() -> str | None:
    """What Slurm says of this job now; None away from Slurm."""
    return slurm.job_detail(slurm.own_job_id(os.environ), slurm.SOON) if "SLURM_JOB_ID" in os.environ else None


def steps_of(views: Sequence[RankView]) -> dict[str, int | None]:
    """Where an attempt began, how far it came, and what of it is saved, by the ranks' heartbeats."""
    beats = [view.beat for view in views if view.beat]
    saved = [beat["saved_step"] for beat in beats if beat["saved_step"] is not None]
    return {
        "resumed": max((beat["resumed_step"] for beat in beats), default=None),
        "last": max((beat["step"] for beat in beats), default=None),
        "saved": max(saved, default=None),
    }


def conclude(then: Sequel, attempt: Attempt, excluded: Sequence[str], seconds: float) -> None:
    """Record the final verdict, and print it as the last lines."""
    verdict, requeue, in_slurm = then.verdict, then.kind == REQUEUE, "SLURM_JOB_ID" in os.environ
    advice = next_command(verdict, attempt, requeue, in_slurm)
    remember(attempt, {"verdict": {**verdict.to_json(), "next": advice}})
    if requeue:
        record_event(attempt.run_dir, "requeue", attempt=attempt.number, exclude=list(excluded))
    say(verdict_lines(verdict, attempt, seconds, requeue, in_slurm))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
