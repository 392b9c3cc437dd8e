"""What follows a verdict: the end, another attempt in this allocation, or the job queued again. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cluster.repeated import same_fault_without_progress
from cluster.verdict import (
    HUNG,
    LAUNCHER_FAILED,
    NODE_LOST,
    OUT_OF_MEMORY,
    RANK_CRASH,
    SAVED,
    TIME_LIMIT,
    Verdict,
    no_progress,
)

END, RESTART, REQUEUE = "end", "restart", "requeue"
DEFAULT_RESTARTS = 3
"""For our own trainer, which resumes. Another program may start from nothing, so it is launched once."""


class Situation(NamedTuple):
    """What besides the verdict decides."""

    restarts: int
    """Launches allowed without a new checkpoint in between, after the first."""
    in_batch_body: bool
    hosts_left: int
    """Granted hosts for another attempt: not those excluded, nor the guilty one where a node is guilty."""
    hosts_needed: int
    warned: bool
    """Whether the ranks were asked to save and stop: this allocation ends soon."""
    stopped: bool
    mpirun_killed: bool
    """Whether somebody else killed mpirun."""


class Sequel(NamedTuple):
    """`exclude` is a host to leave out from now on; `verdict` the final word, where the end is for want of progress."""

    kind: str
    verdict: Verdict
    exclude: str | None = None


def sequel(verdict: Verdict, attempts: Sequence[Mapping[str, Any]], now: Situation) -> Sequel:
    """What to do next. `attempts` are those of run.json, the present one last, with its verdict."""
    end = Sequel(END, verdict)
    restartable = verdict.kind in (RANK_CRASH, OUT_OF_MEMORY, NODE_LOST, HUNG) or (
        verdict.kind == LAUNCHER_FAILED and now.mpirun_killed
    )
    asked_to_go_on = verdict.kind == SAVED or (verdict.kind == TIME_LIMIT and now.warned)
    if (now.stopped and not asked_to_go_on) or not (restartable or asked_to_go_on):
        return end
    if verdict.kind == SAVED and now.stopped:
        return end  # scancel came after the warning: it never requeues
    if same_fault_without_progress(attempts, verdict.to_json()):
        return Sequel(END, no_progress(verdict))
    if asked_to_go_on:
        return Sequel(REQUEUE, verdict) if now.in_batch_body else end
    if restarts_without_progress(attempts) >= now.restarts or _failed_at_its_start(verdict, attempts[-1]):
        return end
    exclude = verdict.host if verdict.kind == NODE_LOST else None
    if now.hosts_left >= now.hosts_needed and not now.warned:
        return Sequel(RESTART, verdict, exclude)
    return Sequel(REQUEUE, verdict, exclude) if now.in_batch_body else end


def restarts_without_progress(attempts: Sequence[Mapping[str, Any]]) -> int:
    """Attempts of this job before the present one that ended with no newer checkpoint than there was before."""
    newest = attempts[-1]
    count = 0
    for earlier in reversed(attempts[:-1]):
        if earlier.get("launch") != newest.get("launch") or _saved(earlier) != _saved(newest):
            break
        count += 1
    return count


def _failed_at_its_start(verdict: Verdict, attempt: Mapping[str, Any]) -> bool:
    """Whether the program ended by its own fault before its first step: it would do so again."""
    steps = attempt.get("steps") or {}
    made_none = steps.get("last") is None or steps.get("last") == steps.get("resumed")
    return verdict.kind == RANK_CRASH and verdict.status < 128 and made_none


def _saved(attempt: Mapping[str, Any]) -> Any:
    return (attempt.get("steps") or {}).get("saved")
