"""Whether another attempt would only meet the same fault again. Pure: the attempts of run.json in, yes or no out."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import NO_PROGRESS
from cluster.verdict import CANCELLED, COMPLETED, HUNG, NODE_LOST, PREEMPTED, SAVED, STUCK, TIME_LIMIT, Verdict

TIMES = 3
"""Attempts with the same fault and no progress after which no further one is made."""

_INTERRUPTED = frozenset({SAVED, PREEMPTED, TIME_LIMIT})
"""Ends that come from outside. They differ from attempt to attempt, and without progress none of them helps."""
_NEVER = frozenset({COMPLETED, CANCELLED})
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")


def same_fault_without_progress(attempts: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any]) -> bool:
    """Whether the last `TIMES` attempts, this one included, met one fault while no step was gained.

    `attempts` are those of run.json with this one as the last (its `steps` are read); `verdict` is this one's, as
    JSON.
    """
    verdicts = [*(attempt.get("verdict") for attempt in attempts[-TIMES:-1]), verdict]
    if len(verdicts) < TIMES or any(one is None or one["kind"] in _NEVER for one in verdicts):
        return False
    if all(one["kind"] in _INTERRUPTED for one in verdicts if one):
        return not any(_gained_or_unknown(attempt) for attempt in attempts[-TIMES:])
    if len({signature(one) for one in verdicts if one}) > 1:
        return False
    first, *later = (_reached(attempt, attempts[-TIMES:]) for attempt in attempts[-TIMES:])
    return max(later) <= first


def no_progress(verdict: Verdict) -> Verdict:
    """The verdict on the third attempt that met the same fault without gaining a step: no fourth is made."""
    summary = f"{verdict.summary} ({verdict.kind}, {TIMES} times without progress)"
    return verdict._replace(kind=STUCK, status=NO_PROGRESS, summary=summary)


def signature(verdict: Mapping[str, Any]) -> tuple[str, str]:
    """What makes two faults the same: for a lost node the host; else the words, whichever rank met it at which step."""
    kind = verdict["kind"]
    if kind == NODE_LOST:
        return kind, verdict.get("host") or ""
    if kind == HUNG:
        return kind, ""
    return kind, _NUMBERS.sub("#", verdict["summary"])


def _reached(attempt: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> int:
    """The step that a next attempt goes on from; where none of the attempts ever saved, the last one made."""
    name = "saved" if any(step_told(one, "saved") >= 0 for one in among) else "last"
    return step_told(attempt, name)


def _gained_or_unknown(attempt: Mapping[str, Any]) -> bool:
    """A program without heartbeats may get on from save to save, for all we know."""
    if all(step_told(attempt, name) < 0 for name in ("resumed", "last", "saved")):
        return True
    return step_told(attempt, "saved") > max(0, step_told(attempt, "resumed"))


def step_told(attempt: Mapping[str, Any], name: str) -> int:
    step = (attempt.get("steps") or {}).get(name)
    return -1 if step is None else int(step)
