"""The verdict on an attempt: what happened, who began it, what to do next. Pure: records in, verdict out.

mpirun's exit status is one witness among several. Open MPI 5 returns 0 when a node is lost, and no version notices
a rank that leaves early with status 0; so success is what every planned rank itself proved, and nothing else.
"""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.allocation import Allocation
from cluster.errors import COMPLETE, LAUNCHER, NODE, REQUEST, REQUEUE
from cluster.rundir import Attempt

COMPLETED, SAVED, USER_ERROR, RANK_FAILED = "complete", "saved for requeue", "user error", "rank failed"
NODE_LOST, LAUNCHER_FAILED, CANCELLED = "node lost", "launcher failed", "cancelled"

_LOST_HOST = re.compile(r"Remote daemon: .* on node (\S+)")
"""Open MPI's words (4.1 and 5.0) where it loses a daemon; its own ranks it then kills without a record."""

_PEER_GONE = re.compile(
    r"Connection (reset|closed|refused)|Broken pipe|Socket closed|PeerError|ncclRemoteError|remote process exited"
    r"|Connection was likely closed|Timed out waiting|wait timeout|NCCL communicator was aborted",
    re.IGNORECASE,
)
"""How gloo, NCCL, the TCP store and our trainer say that another rank has gone."""


@dataclass(frozen=True)
class Witnesses:
    """All that is known when mpirun is gone. Records are those of `cluster.rank`, in any order."""

    allocation: Allocation
    started: Sequence[dict[str, Any]]
    complete: Sequence[dict[str, Any]]
    saved: Sequence[dict[str, Any]]
    failed: Sequence[dict[str, Any]]
    mpirun_status: int
    mpirun_log_tail: str
    guilty_log_tail: str = ""
    stopped_by: int | None = None


@dataclass(frozen=True)
class Verdict:
    """`rank`, `host` and `gpu` name the first guilty rank, where one is guilty. `detail` is its traceback or output."""

    kind: str
    status: int
    summary: str
    rank: int | None = None
    host: str | None = None
    gpu: str | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def first_failure(failed: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The record that began it: the earliest that is not plainly the consequence of another rank's end."""
    return min(failed, key=lambda record: (is_victim(record), record["time_ns"]), default=None)


def is_victim(record: Mapping[str, Any]) -> bool:
    """Whether a rank only followed another: stopped by mpirun, or its error is that a peer has gone.

    A rank that fails may close its connections seconds before its own traceback is out, so time alone would blame
    whoever notices first.
    """
    last_line = record["detail"].rstrip().rpartition("\n")[2]
    return _stopped_by_mpirun(record) or (record["outcome"] == "exception" and bool(_PEER_GONE.search(last_line)))


def _stopped_by_mpirun(record: Mapping[str, Any]) -> bool:
    """Whether this is how mpirun ends the other ranks: its SIGTERM says nothing about who began."""
    return (record["outcome"], record["detail"]) == ("signal", "SIGTERM")


def decide(seen: Witnesses) -> Verdict:
    """One verdict for the attempt."""
    world = seen.allocation.world_size
    if len(seen.complete) == world:
        return Verdict(COMPLETED, COMPLETE, f"{world} of {world} ranks completed")
    if seen.saved and len(seen.saved) + len(seen.complete) == world:
        return Verdict(SAVED, REQUEUE, "the program saved its state and stopped, as it was asked to")
    if seen.stopped_by is not None:
        name = signal.Signals(seen.stopped_by).name
        return Verdict(CANCELLED, 128 + seen.stopped_by, f"{name} reached the launcher; all ranks were stopped")
    guilty = first_failure(seen.failed)
    if guilty is None or (_stopped_by_mpirun(guilty) and len(seen.failed) < len(seen.started)):
        return _silence(seen)
    return _blame(guilty, seen)


def _blame(guilty: dict[str, Any], seen: Witnesses) -> Verdict:
    rank, host, gpu, status = guilty["rank"], guilty["host"], guilty.get("gpu"), guilty["status"]
    detail = guilty["detail"]
    if guilty["outcome"] == "mismatch":
        return Verdict(LAUNCHER_FAILED, LAUNCHER, guilty["detail"], rank, host, gpu)
    if guilty["outcome"] == "exit" and status == REQUEST:
        return Verdict(USER_ERROR, REQUEST, "refused its arguments", rank, host, gpu, seen.guilty_log_tail)
    what = {
        "exception": "raised " + detail.rstrip().rpartition("\n")[2],
        "exit": f"left with exit status {status}",
        "signal": f"was killed by {guilty['detail']}",
        "incomplete": guilty["detail"],
    }[guilty["outcome"]]
    if guilty["outcome"] != "exception":
        detail = f"its last output:\n{seen.guilty_log_tail}" if seen.guilty_log_tail else ""
    return Verdict(RANK_FAILED, status, what, rank, host, gpu, detail)


def _silence(seen: Witnesses) -> Verdict:
    """No rank failed by its own word, and not all completed: who never spoke, and where."""
    begun = {record["rank"] for record in seen.started}
    if not begun:
        summary = f"mpirun ended with status {seen.mpirun_status} before any rank began"
        return Verdict(LAUNCHER_FAILED, LAUNCHER, summary, detail=seen.mpirun_log_tail)
    spoken = {record["rank"] for record in [*seen.complete, *seen.saved, *seen.failed]}
    silent = [place for place in seen.allocation.rank_map() if place.rank not in spoken]
    lost = _LOST_HOST.findall(seen.mpirun_log_tail)
    first = min(silent, key=lambda place: (place.host not in lost, place.rank not in begun, place.rank))
    verb = "began but never ended" if first.rank in begun else "never began"
    others = f" ({len(silent)} of {seen.allocation.world_size} ranks are silent)" if len(silent) > 1 else ""
    summary = f"{verb}{others}, though mpirun ended with status {seen.mpirun_status}"
    return Verdict(NODE_LOST, NODE, summary, first.rank, first.host, None, seen.mpirun_log_tail)


def verdict_lines(verdict: Verdict, attempt: Attempt, seconds: float, requeue: bool) -> list[str]:
    """The last lines of the batch log; the guilty rank and its traceback come last, where one looks first."""
    where = f"attempt {attempt.number} · {_duration(seconds)} · {attempt.run_dir}"
    lines = [f"── {verdict.kind} · exit status {verdict.status} · {where}"]
    if advice := _next(verdict, attempt, requeue):
        lines.append(f"next: {advice}")
    guilty = "" if verdict.rank is None else f"rank {verdict.rank} on {verdict.host}"
    if verdict.gpu is not None:
        guilty += f", GPU {verdict.gpu}"
    return [*lines, f"{guilty} {verdict.summary}".strip(), *verdict.detail.rstrip().splitlines()]


def _next(verdict: Verdict, attempt: Attempt, requeue: bool) -> str | None:
    if verdict.kind == COMPLETED:
        return None
    if verdict.kind == SAVED:
        again = "submit the same command again, it goes on"
        return f"the job queues itself again (if Slurm refuses: {again})" if requeue else again
    if verdict.kind in (LAUNCHER_FAILED, NODE_LOST) or verdict.rank is None:
        return f"less {attempt.mpirun_log}"
    return f"less {attempt.log_of(verdict.rank)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
