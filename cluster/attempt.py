"""One attempt: its files, its mpirun, its ranks, and the verdict, from all that was seen of it."""

import os
import shlex
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import own_job, slurm
from cluster.allocation import Allocation
from cluster.blame import first_failure
from cluster.channel import Listener, own_address
from cluster.command import launch_command, launch_environment
from cluster.decide import Witnesses, decide
from cluster.events import record_event
from cluster.goodput import account
from cluster.growing_logs import tail
from cluster.hostfile import hostfile_text
from cluster.machine import is_this_host
from cluster.mpirun import Mpirun
from cluster.private import write_private
from cluster.records import Records
from cluster.rendezvous import Rendezvous, rendezvous
from cluster.run_file import read_run, record_attempt, write_json
from cluster.rundir import Attempt, create_directories, unwritable
from cluster.secret import secret_values, without
from cluster.signals import Requests
from cluster.supervise import End, Supervision
from cluster.terminal import say
from cluster.verdict import COMPLETED, PREEMPTED, SAVED, Verdict
from cluster.watchdog import RankView


def run_attempt(
    options: Namespace,
    program: Sequence[str],
    allocation: Allocation,
    mpirun: Mpirun,
    attempt: Attempt,
    requests: Requests,
    launch_id: str,
) -> tuple[Verdict, End]:
    """One attempt: its files, its mpirun, its verdict."""
    environ = launch_environment(options, mpirun, allocation)
    command = launch_command(options, mpirun, allocation, program, attempt, environ)
    address = own_address([host.name for host in allocation.hosts], is_this_host, options.nic)
    listener = Listener(address, allocation.world_size)
    meet = rendezvous(allocation, os.environ, attempt.number, address)

    create_directories(attempt)
    begun: dict[str, Any] = {"started": time.time(), "queued": queued_at(attempt), "launch": launch_id}
    begun |= {**own_job.job_facts(os.environ), **allocation.to_json()}
    try:
        write_plan(attempt, allocation, mpirun, command, listener, meet, options.secret)
        record_attempt(attempt, begun)
    except OSError as error:
        raise unwritable(attempt.run_dir, error) from error
    what = f"{allocation.summary()} · {mpirun.dialect.name} ({mpirun.path})"
    say([f"{what} · attempt {attempt.number} · {attempt.path}", *allocation.table()])

    secrets = secret_values(options.secret, environ)
    supervision = Supervision(
        command,
        environ,
        secrets,
        allocation,
        attempt,
        listener,
        requests,
        options.hang_timeout,
    )
    with meet.held:
        end = supervision.run()
    if cut_off(allocation, end.lost_hosts):
        end = end._replace(lost_hosts=(allocation.hosts[0].name,), cut_off=True)
    verdict = decide(gather_witnesses(attempt, allocation, supervision.records, end, requests))
    verdict = verdict._replace(summary=without(verdict.summary, secrets), detail=without(verdict.detail, secrets))
    ended = {
        "ended": time.time(),
        "seconds": end.seconds,
        "steps": steps_of(end.views),
        "verdict": verdict._asdict(),
        "cut_off": end.cut_off,
        "accounting": account(
            begun["queued"],
            begun["started"],
            time.time(),
            next((view.beat for view in end.views if view.rank == 0), None),
            kept=verdict.kind in (COMPLETED, SAVED),
        ),
    }
    remember(attempt, ended)
    facts = {"kind": verdict.kind, "rank": verdict.rank, "host": verdict.host, "step": verdict.step}
    record_event(attempt.run_dir, "verdict", attempt=attempt.number, **facts)
    return verdict, end


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
    write_private(attempt.mpirun_log, "")
    write_private(attempt.hostfile, hostfile_text(allocation, mpirun.dialect))
    write_private(attempt.command, shlex.join(command) + "\n")
    # Last: where it is, the others are. Without line breaks, as every rank reads it.
    write_json(attempt.plan, plan, indent=None)


def remember(attempt: Attempt, facts: Mapping[str, Any]) -> None:
    """Write to run.json; where that cannot be, as on a full disk, the verdict still ends the log."""
    try:
        record_attempt(attempt, facts)
    except OSError as error:
        say([f"warning: run.json in {attempt.run_dir} cannot be written ({error.strerror})"])


def gather_witnesses(
    attempt: Attempt, allocation: Allocation, records: Records, end: End, requests: Requests
) -> Witnesses:
    """All that the verdict rests on."""
    guilty = first_failure(records.of("failed"))
    detail = own_job.detail_now() if requests.stopped_by else None
    stop_reason = own_job.why_stopped(detail, own_job.restart_count(os.environ)) if detail else None
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
    in_slurm = own_job.in_batch_body(os.environ)
    return bool(others) and others == set(lost_hosts) and in_slurm and not slurm.controller_answers()


def queued_at(attempt: Attempt) -> float | None:
    """When the job began to wait for this launch; None away from Slurm and for a second attempt in one allocation.

    A job that was queued again keeps its first EligibleTime: it waits since the attempt before ended.
    """
    here = own_job.job_facts(os.environ)
    before = [entry for entry in read_run(attempt.run_dir)["attempts"] if entry["attempt"] < attempt.number]
    if not here or (before and all(before[-1].get(name) == value for name, value in here.items())):
        return None
    queued = own_job.queued_at(own_job.detail_now())
    same_job = before and before[-1].get("job_id") == here["job_id"]
    return max(queued, before[-1].get("ended", queued)) if queued is not None and same_job else queued


def steps_of(views: Sequence[RankView]) -> dict[str, int | None]:
    """Where an attempt began, how far it came, and what of it is saved, by the ranks' heartbeats."""
    beats = [view.beat for view in views if view.beat]
    saved = [beat["saved_step"] for beat in beats if beat["saved_step"] is not None]
    return {
        "resumed": max((beat["resumed_step"] for beat in beats), default=None),
        "last": max((beat["step"] for beat in beats), default=None),
        "saved": max(saved, default=None),
    }
