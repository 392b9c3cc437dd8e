"""The job that this process is in: what its environment says of it, and what Slurm does."""

import os
from collections.abc import Mapping

from cluster.slurm import SOON, facts_of, job_detail, restarts, seconds_of
from cluster.verdict import CANCELLED, PREEMPTED, TIME_LIMIT

NEAR_THE_END = 900.0
"""Seconds before a job's end in which a warning is for that end; sites warn minutes before, not hours."""

INTERACTIVE_STEP = "4294967290"
"""The step in which salloc's shell runs on the first node, with ``LaunchParameters=use_interactive_step``."""


def in_batch_body(environ: Mapping[str, str]) -> bool:
    """Whether this is a batch job's own process (Slurm names the node there), not the shell of salloc."""
    on_node = "SLURM_JOB_ID" in environ and "SLURMD_NODENAME" in environ
    return on_node and environ.get("SLURM_STEP_ID") != INTERACTIVE_STEP


def job_name(environ: Mapping[str, str]) -> str | None:
    """The batch job's name; an array element adds its index. The shell of salloc has none worth keeping."""
    if not in_batch_body(environ):
        return None
    index = environ.get("SLURM_ARRAY_TASK_ID")
    return environ["SLURM_JOB_NAME"] + (f"-{index}" if index else "")


def job_facts(environ: Mapping[str, str]) -> dict[str, str]:
    """Slurm's names for an attempt, none away from Slurm."""
    names = {"job_id": "SLURM_JOB_ID", "restart_count": "SLURM_RESTART_COUNT"}
    return {key: environ[name] for key, name in names.items() if name in environ}


def restart_count(environ: Mapping[str, str]) -> int:
    """How often Slurm has started this job again."""
    return int(environ.get("SLURM_RESTART_COUNT") or 0)


def own_id(environ: Mapping[str, str]) -> str:
    """The id by which Slurm's commands know this job alone: an array element must not name its whole array."""
    if element := environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{element}"
    return environ["SLURM_JOB_ID"]


def detail_now() -> str | None:
    """``scontrol show job`` of it, now and soon; None away from Slurm."""
    return job_detail(own_id(os.environ), SOON) if "SLURM_JOB_ID" in os.environ else None


def why_warned(detail: str | None, now: float) -> str:
    """Why USR1 came, by ``scontrol show job`` at that moment: 'preempted', 'time limit', or just 'signal'."""
    facts = facts_of(detail or "", "PreemptTime|EndTime")
    if facts.get("PreemptTime", "None") != "None":
        return PREEMPTED
    end = seconds_of(facts.get("EndTime", ""))
    return TIME_LIMIT if end is not None and end - now < NEAR_THE_END else "signal"


def why_stopped(detail: str | None, restart_count: int) -> str:
    """Why TERM came, by ``scontrol show job`` at that moment: 'time limit', 'preempted' or 'cancelled'.

    A preempted job has been queued again by then: it counts one restart more than we know of.
    """
    facts = facts_of(detail or "", "JobState|Reason")
    if facts.get("Reason") == "TimeLimit":
        return TIME_LIMIT
    requeued = restarts(detail or "") > restart_count
    return PREEMPTED if requeued or facts.get("JobState") == "PREEMPTED" else CANCELLED


def queued_at(detail: str | None) -> float | None:
    """When the job began to wait in the queue (seconds since 1970): its EligibleTime."""
    return seconds_of(facts_of(detail or "", "EligibleTime").get("EligibleTime", ""))
