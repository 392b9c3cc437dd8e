"""Where the time went: every second of every attempt has one of eight names. Pure: times and heartbeats in.

queue     waiting for Slurm, also between an attempt and its requeue
start     from the launcher's start to the program's work, and the tear-down of an attempt that ended well
prepare   model, tokens, checkpoint
compile   the first step, with --compile
train     steps whose result is kept
evaluate  held-out loss
save      while the steps wait for a checkpoint
lost      steps since the last checkpoint of an attempt that failed, and the time until its end was noticed
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PARTS = ("queue", "start", "prepare", "compile", "train", "evaluate", "save", "lost")

_GOES_ON = ("job_id", "launch")
"""What two attempts have in common where the second follows the first without anybody submitting it."""


class Goodput(NamedTuple):
    """Totals over the attempts of a run, in seconds."""

    parts: dict[str, float]
    attempts: int

    @property
    def restarts(self) -> int:
        """All attempts but the first."""
        return max(0, self.attempts - 1)

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def effective(self) -> float | None:
        """Share of training whose result is kept, in all time since the first was queued; None before any time."""
        return _share(self.parts["train"], self.total)

    @property
    def effective_running(self) -> float | None:
        """The same without the time in the queue, which no launcher can shorten."""
        return _share(self.parts["train"], self.total - self.parts["queue"])

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": self.parts,
            "total": self.total,
            "attempts": self.attempts,
            "restarts": self.restarts,
            "effective": self.effective,
            "effective_without_queue": self.effective_running,
        }


def account(
    queued_at: float | None, launched_at: float, ended_at: float, beat: Mapping[str, Any] | None, kept: bool
) -> dict[str, float]:
    """Seconds of one attempt by `PARTS`; they sum to the time in the queue plus ``ended_at - launched_at``.

    Times are seconds since 1970 by the launcher's clock. `beat` is the last heartbeat of rank 0 (or of the slowest
    rank); `kept`: the attempt ended well, complete or saved, so that no step of it is lost.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    parts["queue"] = max(0.0, launched_at - queued_at) if queued_at is not None else 0.0
    elapsed = max(0.0, ended_at - launched_at)
    if beat is None:
        parts["start"] = elapsed
        return parts
    told = _fitted({name: max(0.0, float(beat["seconds"].get(name, 0.0))) for name in PARTS[1:-1]}, elapsed)
    parts.update(told)
    rest = elapsed - sum(told.values())
    if kept:
        parts["start"] += rest
        return parts
    silent = min(rest, max(0.0, ended_at - beat["time"]))
    parts["start"] += rest - silent
    unsaved = max(0.0, told["train"] - float(beat.get("saved_train_seconds") or 0.0))
    parts["train"] -= unsaved
    parts["lost"] = silent + unsaved
    return parts


def totals(attempts: Sequence[Mapping[str, Any]]) -> Goodput:
    """Over the attempts of run.json that have an accounting; a gap before an attempt counts as queue.

    A gap does so where the same job (or the same launcher) goes on. Where a person submitted again, only the new
    job's own time in the queue counts: nobody was waiting before.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    before: Mapping[str, Any] | None = None
    for attempt in attempts:
        if accounting := attempt.get("accounting"):
            for name in PARTS:
                parts[name] += accounting.get(name, 0.0)
            if before is not None:
                parts["queue"] += _gap(before, attempt) - accounting.get("queue", 0.0)
        before = attempt
    return Goodput(parts, len(attempts))


def goodput_lines(goodput: Goodput) -> list[str]:
    """For people: the effective share, then every part with its seconds and its share."""
    if not goodput.total:
        return []
    restarts = f"{goodput.restarts} restart{'' if goodput.restarts == 1 else 's'}"
    head = f"effective training time {_percent(goodput.effective)} of {duration(goodput.total)}"
    head += f" ({_percent(goodput.effective_running)} without the queue), {restarts}"
    shares = (
        f"  {name:<9}{duration(seconds):>10}  {_percent(_share(seconds, goodput.total)):>7}"
        for name, seconds in goodput.parts.items()
    )
    return [head, *shares]


def duration(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _fitted(told: dict[str, float], elapsed: float) -> dict[str, float]:
    """What the program counted, never more than the launcher's clock saw (two clocks are never quite equal)."""
    total = sum(told.values())
    return {name: seconds * elapsed / total for name, seconds in told.items()} if total > elapsed else told


def _gap(before: Mapping[str, Any], attempt: Mapping[str, Any]) -> float:
    """Seconds between two attempts that count as queue."""
    queue = float(attempt["accounting"].get("queue", 0.0))
    if "ended" not in before:
        return queue
    gap = max(0.0, float(attempt["started"]) - float(before["ended"]))
    same = any(before.get(name) is not None and before.get(name) == attempt.get(name) for name in _GOES_ON)
    return gap if same else min(queue, gap)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
