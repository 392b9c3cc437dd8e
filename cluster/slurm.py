"""Slurm's commands, asked and told: job details, states, requeue. The only module that runs them."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SECONDS = 20
"""Longest wait for one answer; a busy controller answers late, a dead one never."""

ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)
"""Job states that do not change any more (squeue(1), JOB STATE CODES); PREEMPTED does where the job requeues."""


class JobState(NamedTuple):
    """A job as Slurm tells it. `exit_code` is the batch body's status, `signal` what ended it (0: nothing did)."""

    state: str
    reason: str = ""
    exit_code: int = 0
    signal: int = 0

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def exit_status(self) -> int:
        """The status to return for the job: its own, 128 + signal, and never 0 unless it COMPLETED."""
        if self.state == "COMPLETED":
            return self.exit_code
        return self.exit_code or (128 + self.signal if self.signal else 1)


def job_detail(job_id: str) -> str | None:
    """``scontrol show job -d``, or None where scontrol is missing or does not answer."""
    return _ask(["scontrol", "show", "job", "-d", job_id])


def job_state(job_id: str) -> JobState | None:
    """State from the controller, else (the job is too old for it) from accounting; None where neither knows."""
    if detail := job_detail(job_id):
        return parse_job_detail(detail)
    rows = _ask(["sacct", "-nPX", "-j", job_id, "-o", "State,ExitCode"])
    return parse_accounting(rows) if rows else None


def parse_job_detail(detail: str) -> JobState:
    """From ``JobState=FAILED Reason=NonZeroExitCode … ExitCode=3:0``."""
    facts = dict(re.findall(r"\b(JobState|Reason|ExitCode)=(\S+)", detail))
    code, _, number = facts.get("ExitCode", "0:0").partition(":")
    return JobState(facts["JobState"], facts.get("Reason", ""), int(code), int(number or 0))


def parse_accounting(rows: str) -> JobState:
    """From sacct's ``CANCELLED by 0|0:15``; after a requeue the last row counts."""
    state, exit_code = rows.strip().splitlines()[-1].split("|")
    code, _, number = exit_code.partition(":")
    return JobState(state.split()[0], "", int(code), int(number or 0))


def refusal(script: str) -> str | None:
    """What ``sbatch --test-only`` has against the batch script, in its own words; None where it would accept it.

    sbatch itself queues some requests that can never start (more nodes than the partition has).
    """
    import subprocess

    try:
        answer = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if answer.returncode == 0 else " ".join(answer.stderr.split())


def nodes_out_of_service() -> bool:
    """Whether some node is down or drained: then ``--test-only`` also refuses what could start once it is back."""
    return bool(_ask(["sinfo", "--noheader", "--states=down,drain,fail,maint", "--format=%n"]))


def requeue(job_id: str) -> bool:
    """Queue this job (or array element) again; Slurm then ends the present run. False where Slurm refuses."""
    return _ask(["scontrol", "requeue", job_id]) is not None


def in_batch_body(environ: Mapping[str, str]) -> bool:
    """Whether this is a batch job's own process (Slurm names the node there), not the shell of salloc."""
    return "SLURM_JOB_ID" in environ and "SLURMD_NODENAME" in environ


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


def own_job_id(environ: Mapping[str, str]) -> str:
    """The id by which Slurm's commands know this job alone: an array element must not name its whole array."""
    if element := environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{element}"
    return environ["SLURM_JOB_ID"]


def _ask(command: Sequence[str]) -> str | None:
    import subprocess

    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
