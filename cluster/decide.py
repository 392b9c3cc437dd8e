"""From all that is known when mpirun has gone to one verdict. Pure: records in, verdict out.

mpirun's exit status is one witness among several. Open MPI 5 returns 0 when a node is lost, and no version notices
a rank that leaves early with status 0; so success is what every planned rank itself proved, and nothing else.
"""

import signal
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from cluster.allocation import Allocation
from cluster.blame import (
    error_name,
    final_message,
    first_failure,
    is_collective_timeout,
    is_out_of_memory,
    is_storage,
    is_victim,
    rank_in_words,
)
from cluster.errors import COMPLETE, HANG, LAUNCHER, NODE, REQUEST, REQUEUE
from cluster.machine import signal_name
from cluster.mpirun_words import MpirunWords, read_words
from cluster.verdict import (
    CANCELLED,
    COMPLETED,
    HUNG,
    LAUNCHER_FAILED,
    NODE_LOST,
    NUMERIC,
    OUT_OF_MEMORY,
    PREEMPTED,
    RANK_CRASH,
    SAVED,
    STORAGE,
    TIME_LIMIT,
    USER_ERROR,
    Verdict,
)


class Witnesses(NamedTuple):
    """All that is known when mpirun is gone. Records are those of `cluster.records`, in any order."""

    allocation: Allocation
    started: Sequence[dict[str, Any]]
    complete: Sequence[dict[str, Any]]
    saved: Sequence[dict[str, Any]]
    failed: Sequence[dict[str, Any]]
    mpirun_status: int
    mpirun_log_tail: str
    guilty_log_tail: str = ""
    stopped_by: int | None = None
    """The signal that stopped the launcher."""
    stop_reason: str | None = None
    """What that signal meant: one of `TIME_LIMIT`, `PREEMPTED`, `CANCELLED`."""
    warned_by: str | None = None
    """Why the ranks were asked to save: `TIME_LIMIT`, `PREEMPTED`, "signal", "Ctrl-C"."""
    hang: Mapping[str, Any] | None = None
    """What the watchdog says of the rank that is behind: rank, host, gpu, step, summary, stacks."""
    lost_hosts: Sequence[str] = ()
    """Hosts that fell silent on the launcher's channel, in order of time."""
    vanished: Sequence[int] = ()
    """Ranks whose watcher's connection closed without an end record, in order of time."""
    unfit: Sequence[tuple[str, str]] = ()
    """Hosts that the preflight refuses, each with a sentence that follows its name."""
    last_steps: Mapping[int, int] = MappingProxyType({})
    """The step of each rank's last heartbeat: where a rank was that cannot say it itself."""
    launcher_stopped_mpirun: bool = False
    """Whether the launcher itself ended mpirun: its signal then says nothing."""


def decide(seen: Witnesses) -> Verdict:
    """One verdict for the attempt."""
    world = seen.allocation.world_size
    if len(seen.complete) == world:
        return Verdict(COMPLETED, COMPLETE, f"{world} of {world} ranks completed")
    if seen.saved and len(seen.saved) + len(seen.complete) == world:
        return _saved(seen)
    if seen.stopped_by is not None:
        return _stopped(seen, seen.stopped_by)
    if seen.unfit:
        return _unfit(seen.unfit)
    guilty = first_failure(seen.failed)
    if seen.lost_hosts:
        return _silent(seen.lost_hosts[0], seen)
    if seen.hang is not None:
        return _hang(seen.hang)
    words = read_words(seen.mpirun_log_tail, [host.name for host in seen.allocation.hosts])
    died_with_daemon = guilty is not None and guilty["host"] == words.lost_daemon and _killed(guilty)
    if guilty is not None and not (is_victim(guilty) or died_with_daemon or _only_ended_after_a_timeout(seen.failed)):
        return _blame(guilty, seen)
    if words.lacks_executable:
        return _lacks_executable(words.lacks_executable, seen)
    if words.lost_daemon:
        return _lost(words.lost_daemon, "was lost by mpirun", seen)
    if words.daemons_ended and seen.started and (host := _host_of_first_silence(seen)):
        return _lost(host, "lost mpirun's daemon", seen)
    if seen.mpirun_status < 0 and not seen.launcher_stopped_mpirun:
        return _mpirun_killed(seen)
    if verdict := _vanished(seen, words):
        return verdict
    if any(is_collective_timeout(record) for record in seen.failed):
        return _collective_timeout(seen)
    if guilty is not None and words.exited_process == guilty["rank"] and seen.vanished:
        return _blame(guilty, seen)
    if guilty is None or len(seen.failed) < len(seen.started):
        return _silence(seen, words)
    return _blame(guilty, seen)


def _saved(seen: Witnesses) -> Verdict:
    steps = [record["step"] for record in seen.saved if record.get("step") is not None]
    step = max(steps, default=None)
    at = "" if step is None else f" at step {step}"
    why = "it was asked to" if seen.warned_by is None else f"it was asked to ({seen.warned_by})"
    return Verdict(SAVED, REQUEUE, f"the program saved its state{at} and stopped, as {why}", step=step)


def _stopped(seen: Witnesses, number: int) -> Verdict:
    kind = seen.stop_reason or (seen.warned_by if seen.warned_by in (TIME_LIMIT, PREEMPTED) else CANCELLED)
    why = {TIME_LIMIT: "the job's time was over: ", PREEMPTED: "the job was preempted: "}.get(kind, "")
    saved = f"{len(seen.saved)} of {seen.allocation.world_size} ranks had saved by then" if seen.warned_by else ""
    summary = f"{why}{signal_name(number)} reached the launcher; all ranks were stopped"
    return Verdict(kind, 128 + number, f"{summary}; {saved}" if saved else summary)


def _unfit(unfit: Sequence[tuple[str, str]]) -> Verdict:
    (host, sentence), *others = unfit
    return Verdict(
        NODE_LOST, NODE, f"{host} {sentence}", host=host, detail="\n".join(f"{name} {said}" for name, said in others)
    )


def _hang(hang: Mapping[str, Any]) -> Verdict:
    where = (hang.get("rank"), hang.get("host"), hang.get("gpu"))
    return Verdict(HUNG, HANG, hang["summary"], *where, detail=hang.get("stacks") or "", step=hang.get("step"))


def _silent(host: str, seen: Witnesses) -> Verdict:
    """The host that the launcher no longer hears, or of which no rank has begun in time."""
    ranks = {place.rank for place in seen.allocation.rank_map() if place.host == host}
    if ranks.isdisjoint(record["rank"] for record in seen.started) and ranks:
        return _lost(host, "was never heard", seen, never="began")
    return _lost(host, "fell silent", seen)


def _lost(host: str, what: str, seen: Witnesses, never: str = "ended") -> Verdict:
    """The host that mpirun or the launcher lost; its first rank stands for all of its ranks."""
    ranks = [place.rank for place in seen.allocation.rank_map() if place.host == host]
    if not ranks:
        return Verdict(NODE_LOST, NODE, f"{host} {what}", host=host, detail=seen.mpirun_log_tail)
    others = f" (with ranks {ranks[0]} to {ranks[-1]})" if len(ranks) > 1 else ""
    return _at(ranks[0], seen, NODE_LOST, NODE, f"never {never}: the host {what}{others}", seen.mpirun_log_tail)


def _lacks_executable(lacking: tuple[str, str], seen: Witnesses) -> Verdict:
    """The launcher runs with that very interpreter on the first host: elsewhere it is the host that lacks it."""
    host, executable = lacking
    if host == seen.allocation.hosts[0].name:
        summary = f"mpirun cannot start {executable} on {host}"
        return Verdict(LAUNCHER_FAILED, LAUNCHER, summary, host=host, detail=seen.mpirun_log_tail)
    summary = f"{host} has no {executable}, which the first host has"
    return Verdict(NODE_LOST, NODE, summary, host=host, detail=seen.mpirun_log_tail)


def _mpirun_killed(seen: Witnesses) -> Verdict:
    summary = f"mpirun was killed by {signal_name(-seen.mpirun_status)}"
    return Verdict(LAUNCHER_FAILED, LAUNCHER, summary, detail=seen.mpirun_log_tail)


def _host_of_first_silence(seen: Witnesses) -> str | None:
    """The host whose ranks went first, by whatever sign; never the first host, where mpirun itself is the daemon."""
    when: dict[str, float] = {}
    hosts = {place.rank: place.host for place in seen.allocation.rank_map()}
    ends = [(rank, -len(seen.vanished) + index) for index, rank in enumerate(seen.vanished)]
    ends += [(record["rank"], record["time_ns"]) for record in seen.failed]
    for rank, order in ends:
        when[hosts[rank]] = min(order, when.get(hosts[rank], order))
    when.pop(seen.allocation.hosts[0].name, None)
    return min(when, key=lambda host: when[host], default=None)


def _vanished(seen: Witnesses, words: MpirunWords) -> Verdict | None:
    """A watcher that was killed, or a whole host whose watchers all went first; None where none vanished.

    Where mpirun itself names a process that a signal ended, that one was first; the others it ended itself.
    """
    if words.killed_process is not None and words.killed_process[0] < seen.allocation.world_size:
        rank, name = words.killed_process
        recorded = {record["rank"] for record in seen.failed}
        if rank not in recorded:
            return _watcher_killed(rank, f" by {name}", seen)
    if not seen.vanished:
        return None
    first = seen.allocation.place(seen.vanished[0])
    on_host = {place.rank for place in seen.allocation.rank_map() if place.host == first.host}
    if set(seen.vanished[: len(on_host)]) == on_host and len(seen.allocation.hosts) > 1:
        return _lost(first.host, "closed all its connections at once", seen)
    if words.exited_process in {record["rank"] for record in seen.failed}:
        return None  # that rank's end was first, and mpirun killed the others before they could tell theirs
    return _watcher_killed(first.rank, "", seen)


def _watcher_killed(rank: int, by: str, seen: Witnesses) -> Verdict:
    return _at(rank, seen, RANK_CRASH, 128 + signal.SIGKILL, f"crashed: its watcher was killed{by}", "")


def _only_ended_after_a_timeout(failed: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a collective timed out first, and every other end was a SIGKILL after it: a tear-down, not a cause."""
    others = [record for record in failed if not is_victim(record)]
    if not all(map(_killed, others)):
        return False
    timed_out = min((record["time_ns"] for record in failed if is_collective_timeout(record)), default=None)
    return timed_out is not None and all(record["time_ns"] > timed_out for record in others)


def _killed(record: Mapping[str, Any]) -> bool:
    """Whether somebody's SIGKILL ended the rank, not the kernel's for want of memory."""
    return (record["outcome"], record["detail"]) == ("signal", "SIGKILL") and not record.get("oom_killed")


def _collective_timeout(seen: Witnesses) -> Verdict:
    """Ranks waited in a collective until it timed out: guilty is who was not waiting, else who is behind."""
    waiting = {record["rank"] for record in seen.failed if is_collective_timeout(record)}
    steps = {**seen.last_steps, **{r["rank"]: r["step"] for r in seen.failed if r.get("step") is not None}}
    absent = [place.rank for place in seen.allocation.rank_map() if place.rank not in waiting]
    count = len(waiting)
    waited = f"{count} rank{'' if count == 1 else 's'} waited for it in a collective until the time-out"
    detail = next((r["detail"] for r in seen.failed if r["rank"] in waiting), "")
    if absent:
        return _at(min(absent, key=lambda r: (steps.get(r, -1), r)), seen, HUNG, HANG, f"was silent: {waited}", detail)
    if len(set(steps.values())) > 1:
        behind = min(waiting, key=lambda r: (steps.get(r, -1), r))
        return _at(behind, seen, HUNG, HANG, "is behind: all ranks waited in collectives until the time-out", detail)
    return Verdict(HUNG, HANG, "all ranks waited in collectives until the time-out: their calls differ", detail=detail)


def _blame(guilty: Mapping[str, Any], seen: Witnesses) -> Verdict:
    """The verdict on a rank whose own record says how it failed."""
    outcome, status, detail = guilty["outcome"], guilty["status"], guilty["detail"]
    output = f"its last output:\n{seen.guilty_log_tail}" if seen.guilty_log_tail else ""
    where = (guilty["rank"], guilty["host"], guilty.get("gpu"))
    step = guilty.get("step")
    if outcome == "mismatch":
        return Verdict(LAUNCHER_FAILED, LAUNCHER, detail, *where, step=step)
    if outcome == "exit" and status == REQUEST:
        return Verdict(USER_ERROR, REQUEST, "refused its arguments", *where, detail=seen.guilty_log_tail, step=step)
    if outcome == "exit" and status == NODE:
        said = _last_error(seen.guilty_log_tail) or "left with exit status 71"
        return Verdict(NODE_LOST, NODE, f"found its host unfit: {said}", *where, detail=output, step=step)
    if outcome == "exit" and status in (126, 127) and guilty["host"] != seen.allocation.hosts[0].name:
        # the launcher has found the program on the first host before it started anything
        said = _last_error(seen.guilty_log_tail)
        if said.startswith("cannot run"):
            return Verdict(NODE_LOST, NODE, f"{said}, which the first host has", *where, detail=output, step=step)
    what = {
        "exception": "raised " + _headline(detail),
        "exit": f"left with exit status {status}",
        "signal": f"was killed by {detail}",
    }.get(outcome, detail)
    kind = RANK_CRASH
    if is_out_of_memory(guilty):
        kind = OUT_OF_MEMORY
        if outcome == "signal":
            what += ": its host was out of memory"
    elif is_storage(guilty):
        kind = STORAGE
    elif outcome == "exception" and error_name(guilty) == "FloatingPointError":
        kind = NUMERIC
        named = rank_in_words(final_message(detail))
        if named is not None and named < seen.allocation.world_size:
            where = _where(named, seen)
    return Verdict(kind, status, what, *where, detail=detail if outcome == "exception" else output, step=step)


def _silence(seen: Witnesses, words: MpirunWords) -> Verdict:
    """No rank failed by its own word, and not all completed: who never spoke, and where."""
    begun = {record["rank"] for record in seen.started}
    if not begun:
        return _never_began(seen, words)
    spoken = {record["rank"] for record in [*seen.complete, *seen.saved, *seen.failed]}
    if len(spoken) == seen.allocation.world_size:
        return _left_early(seen)
    silent = [place for place in seen.allocation.rank_map() if place.rank not in spoken]
    with_words = {place.host for place in seen.allocation.rank_map() if place.rank in spoken}
    first = min(silent, key=lambda place: (place.host in with_words, place.rank not in begun, place.rank))
    verb = "began but never ended" if first.rank in begun else "never began"
    others = f" ({len(silent)} of {seen.allocation.world_size} ranks are silent)" if len(silent) > 1 else ""
    summary = f"{verb}{others}, though mpirun ended with status {seen.mpirun_status}"
    return _at(first.rank, seen, NODE_LOST, NODE, summary, seen.mpirun_log_tail)


def _left_early(seen: Witnesses) -> Verdict:
    """All have spoken, and those that failed only missed a peer: it is one that ended well, but too soon."""
    first = min([*seen.complete, *seen.saved], key=lambda record: record["time_ns"])
    left = "completed" if first["status"] == 0 else "saved and left"
    victim = first_failure(seen.failed)
    detail = victim["detail"] if victim else ""
    return _at(first["rank"], seen, RANK_CRASH, 1, f"{left} while other ranks still worked with it", detail)


def _never_began(seen: Witnesses, words: MpirunWords) -> Verdict:
    """On Slurm a daemon that does not start is the node's fault; over ssh it is mostly a wrong name or key."""
    summary = f"mpirun ended with status {seen.mpirun_status} before any rank began"
    host = words.no_daemon
    if host is not None and seen.allocation.source == "slurm" and host != seen.allocation.hosts[0].name:
        return Verdict(
            NODE_LOST, NODE, f"{host} did not start mpirun's daemon: {summary}", host=host, detail=seen.mpirun_log_tail
        )
    return Verdict(LAUNCHER_FAILED, LAUNCHER, summary, host=host, detail=seen.mpirun_log_tail)


def _at(rank: int, seen: Witnesses, kind: str, status: int, summary: str, detail: str) -> Verdict:
    """A verdict on a rank that left no record of its end: place and GPU from its first record, else from the plan."""
    step = next((r["step"] for r in seen.failed if r["rank"] == rank and r.get("step") is not None), None)
    return Verdict(
        kind,
        status,
        summary,
        *_where(rank, seen),
        detail=detail,
        step=seen.last_steps.get(rank) if step is None else step,
    )


def _where(rank: int, seen: Witnesses) -> tuple[int, str, str | None]:
    gpu = next((record.get("gpu") for record in seen.started if record["rank"] == rank), None)
    return rank, seen.allocation.place(rank).host, gpu


def _headline(detail: str) -> str:
    """First line of the exception's own words: a C++ backtrace may follow it."""
    return final_message(detail).partition("\n")[0]


def _last_error(output: str) -> str:
    """The last ``error: …`` of a rank's output, without that word."""
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else ""
