"""What follows a verdict: the end, another attempt in this allocation, or the job queued again. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cluster.repeated import no_progress, same_fault_without_progress, step_told
from cluster.verdict import (
    CANCELLED,
    HUNG,
    LAUNCHER_FAILED,
    NODE_LOST,
    OUT_OF_MEMORY,
    RANK_CRASH,
    SAVED,
    TIME_LIMIT,
    Verdict,
)

END, RESTART, REQUEUE = "end", "restart", "requeue"


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
    stopped_for: str | None
    """Why the launcher was stopped ('time limit', 'preempted' or 'cancelled'), if it was."""
    mpirun_killed: bool
    """Whether somebody else killed mpirun."""
    cut_off: bool
    """Whether this host lost the network: Slurm then queues the job again, and nobody here may."""


class Sequel(NamedTuple):
    """`exclude` is a host to leave out from now on; `verdict` the final word, where the end is for want of progress."""

    kind: str
    verdict: Verdict
    exclude: str | None = None


def sequel(verdict: Verdict, attempts: Sequence[Mapping[str, Any]], now: Situation) -> Sequel:
    """What to do next. `attempts` are those of run.json, the present one last, with its verdict."""
    end = Sequel(END, verdict)
    restartable = verdict.kind in (RANK_CRASH, OUT_OF_MEMORY, NODE_LOST, HUNG) or (
        verdict.kind == LAUNCHER_FAILED and (now.mpirun_killed or _worked_before(attempts))
    )
    asked_to_go_on = verdict.kind == SAVED or (verdict.kind == TIME_LIMIT and now.warned)
    if not (restartable or asked_to_go_on) or (now.stopped_for is not None and not asked_to_go_on):
        return end
    if now.cut_off or now.stopped_for == CANCELLED:
        return end  # also where scancel came after the warning: it never requeues
    if same_fault_without_progress(attempts, verdict._asdict()):
        return Sequel(END, no_progress(verdict))
    if asked_to_go_on:
        return Sequel(REQUEUE, verdict) if now.in_batch_body else end
    if restarts_without_progress(attempts) >= now.restarts or _would_fail_at_its_start(verdict, attempts):
        return end
    exclude = verdict.host if verdict.kind == NODE_LOST else None
    if now.hosts_left >= now.hosts_needed and not now.warned:
        return Sequel(RESTART, verdict, exclude)
    return Sequel(REQUEUE, verdict, exclude) if now.in_batch_body else end


def restarts_without_progress(attempts: Sequence[Mapping[str, Any]]) -> int:
    """Attempts of this launch since the one that last left a newer checkpoint than all before; 0 for the first."""
    count, best = 0, None
    for attempt in _of_this_launch(attempts):
        if best is None or step_told(attempt, "saved") > best:
            count, best = 0, step_told(attempt, "saved")
        else:
            count += 1
    return count


def _would_fail_at_its_start(verdict: Verdict, attempts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the program has ended by its own fault before its first step, and did so before in this launch.

    One such end may be bad luck, as a port that somebody took a moment before.
    """
    if verdict.kind != RANK_CRASH or verdict.status >= 128:
        return False
    return sum(_made_no_step(attempt) for attempt in _of_this_launch(attempts)) > 1


def _worked_before(attempts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether mpirun has started the ranks of an earlier attempt of this launch: what it lacks now may come back.

    Just after a restart of Slurm's controller, for one, it cannot start its daemons for some seconds.
    """
    return any(attempt["verdict"]["kind"] != LAUNCHER_FAILED for attempt in _of_this_launch(attempts)[:-1])


def _of_this_launch(attempts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [attempt for attempt in attempts if attempt.get("launch") == attempts[-1].get("launch")]


def _made_no_step(attempt: Mapping[str, Any]) -> bool:
    """By its heartbeats, where it made any."""
    last = step_told(attempt, "last")
    return last >= 0 and last == step_told(attempt, "resumed")
