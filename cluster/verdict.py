"""The verdict on an attempt: its kinds, its words, and what to do next. `cluster.decide` comes to it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster.goodput import duration
from cluster.rundir import Attempt

COMPLETED, SAVED, USER_ERROR, RANK_CRASH = "complete", "saved for requeue", "user error", "rank crash"
OUT_OF_MEMORY, NODE_LOST, HUNG, STORAGE, NUMERIC = "out of memory", "node lost", "hang", "storage", "numeric"
PREEMPTED, TIME_LIMIT, CANCELLED = "preempted", "time limit", "cancelled"
LAUNCHER_FAILED, STUCK = "launcher failed", "no progress"
AGAIN = "submit the same command again, it goes on"


class Verdict(NamedTuple):
    """`rank`, `host`, `gpu` and `step` name the first guilty rank, where one is guilty.

    `detail` is its traceback, its last output, or the stacks of a hang.
    """

    kind: str
    status: int
    summary: str
    rank: int | None = None
    host: str | None = None
    gpu: str | None = None
    detail: str = ""
    step: int | None = None


def verdict_lines(
    verdict: Verdict, attempt: Attempt, seconds: float, requeue: bool, in_slurm: bool = False
) -> list[str]:
    """The last lines of the batch log; the guilty rank and its traceback come last, where one looks first."""
    where = f"attempt {attempt.number} · {duration(seconds)} · {attempt.run_dir}"
    lines = [f"── {verdict.kind} · exit status {verdict.status} · {where}"]
    if advice := next_command(verdict, attempt, requeue, in_slurm):
        lines.append(f"next: {advice}")
    guilty = "" if verdict.rank is None else f"rank {verdict.rank} on {verdict.host}"
    if verdict.gpu is not None:
        guilty += f", GPU {verdict.gpu}"
    if verdict.rank is not None and verdict.step is not None:
        guilty += f", step {verdict.step}:"
    return [*lines, f"{guilty} {verdict.summary}".strip(), *verdict.detail.rstrip().splitlines()]


def next_command(verdict: Verdict, attempt: Attempt, requeue: bool, in_slurm: bool = False) -> str | None:
    """The next command to type, or the one thing to know; None where nothing is left to do."""
    if requeue:
        return f"the job queues itself again (if Slurm refuses: {AGAIN})"
    kind, run_dir = verdict.kind, attempt.run_dir
    if kind == PREEMPTED and in_slurm:
        return f"Slurm queues the job again, and it goes on from its last checkpoint (if not: {AGAIN})"
    if kind == NODE_LOST and in_slurm and verdict.host:
        return f"scontrol show node {verdict.host}; then sbatch --exclude={verdict.host} … with the same arguments"
    if kind == OUT_OF_MEMORY and in_slurm and verdict.status > 128:
        return "sbatch --mem=… with more than now, and the same arguments (sacct -j <job> -o MaxRSS,ReqMem)"
    if kind == STORAGE and "TakenOverError" in verdict.detail:
        return f"python -m cluster status {run_dir}; the newer attempt goes on, nothing is to be done"
    log = attempt.mpirun_log if verdict.rank is None else attempt.log_of(verdict.rank)
    usual = {
        COMPLETED: None,
        SAVED: AGAIN,
        **dict.fromkeys((PREEMPTED, TIME_LIMIT, CANCELLED), f"{AGAIN} from its last checkpoint"),
        **dict.fromkeys((NODE_LOST, LAUNCHER_FAILED), f"less {attempt.mpirun_log}"),
        STORAGE: f"df -h {run_dir}; df -i {run_dir}",
        STUCK: f"python -m cluster status {run_dir}",
    }
    return usual.get(kind, f"less {log}")


def judged(verdict: Mapping[str, Any]) -> str:
    """``rank crash, exit status 1, rank 3 on r1n2: raised ValueError: boom``, of a verdict in run.json."""
    who = f", rank {verdict['rank']} on {verdict['host']}" if verdict.get("rank") is not None else ""
    what = f": {verdict['summary']}" if verdict.get("summary") else ""
    return f"{verdict['kind']}, exit status {verdict['status']}{who}{what}"
