"""Who is silent, who hangs, who is slow: pure deciders over what the launcher heard of each rank.

Progress is what heartbeats say, not what is printed. A rank that makes no heartbeats (a program that knows none) is
never judged by them.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SILENCE = 8.0
"""Seconds without a word from any watcher of a host after which the host is lost: more than a busy node needs, and
less than the 15 s in which its loss is to be noticed."""
LONGEST_STEPS = 10
"""Longest steps seen without progress that are a hang, where that is more than the time-out."""
STEPS_TO_KNOW = 2
"""Whole steps of an attempt after which its step time is known; until then the time-out counts `LONGEST_STEPS` fold."""
POSITIONS = ("", "data", "forward", "backward", "agree", "update")
"""Where a rank is within a step, in order (`at` of a heartbeat)."""

WINDOW = 20
"""Steps over which own work is compared."""
WINDOWS = 3
"""Windows in a row in which a rank must be slow to be called a straggler: one busy moment of a host is none."""
SLOWER = 2.0
"""Times the median of all ranks' own work that make a rank slow."""


@dataclass
class RankView:
    """What the launcher knows of one rank; times are the launcher's monotonic seconds."""

    rank: int
    host: str
    gpu: str | None = None
    heard_at: float = 0.0
    moved_at: float = 0.0
    """When its phase, step or position last changed."""
    beat: Mapping[str, Any] | None = None
    state: str = ""
    """The kernel's letter for its process: T is stopped."""
    stopped_at: float | None = None
    """Since when it has been seen stopped."""
    stacks: str | None = None
    """Its stacks, once it answered the question for them; empty where its program did not."""
    longest_step: float = 0.0
    busy: list[tuple[int, float]] = field(default_factory=list)
    """(step, busy seconds until then) at the ends of windows."""

    def hear(self, message: Mapping[str, Any], now: float) -> None:
        """Take in a word from the rank's watcher."""
        self.heard_at = now
        if "state" in message:
            self.state = message["state"]
            self.stopped_at = None if self.state != "T" else self.stopped_at or now
        if "stacks" in message:
            self.stacks = message["stacks"]
        beat = message.get("beat")
        if beat is not None:
            if self.beat is None or position(beat) != position(self.beat):
                self.moved_at = now
            self.beat = beat
            self.longest_step = max(self.longest_step, beat.get("step_seconds") or 0.0)
            if not self.busy or beat["step"] >= self.busy[-1][0] + WINDOW:
                self.busy = [*self.busy[-WINDOWS:], (beat["step"], beat["busy_seconds"])]

    @property
    def step(self) -> int | None:
        return self.beat["step"] if self.beat else None


class Hang(NamedTuple):
    """Who is to blame for a hang, and why."""

    rank: int
    summary: str


def position(beat: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a heartbeat says that its rank is."""
    return beat["phase"], beat["step"], beat["at"]


def silent_hosts(views: Iterable[RankView], now: float, seconds: float = SILENCE) -> list[str]:
    """Hosts of which no rank was heard for so long. Pass the ranks that should still be talking."""
    last: dict[str, float] = {}
    for view in views:
        last[view.host] = max(view.heard_at, last.get(view.host, 0.0))
    return [host for host, heard_at in last.items() if now - heard_at > seconds]


def hangs(views: Collection[RankView], now: float, timeout: float) -> bool:
    """Whether the ranks have made no progress for longer than their steps explain.

    Only while all of them train: start, preparation, compilation, evaluation and saving take what they take. A process
    that has been stopped all the while hangs in any phase.
    """
    if any(view.stopped_at is not None and now - view.stopped_at > timeout for view in views):
        return True
    beats = [view.beat for view in views if view.beat is not None]
    if not beats or len(beats) < len(views) or any(beat["phase"] != "train" for beat in beats):
        return False
    return now - max(view.moved_at for view in views) > patience(views, timeout)


def patience(views: Collection[RankView], timeout: float) -> float:
    """Seconds without progress that are allowed: the time-out, or ten of the longest steps seen."""
    if any(view.beat is None or view.beat["step"] < view.beat["resumed_step"] + STEPS_TO_KNOW for view in views):
        return LONGEST_STEPS * timeout
    return max(timeout, LONGEST_STEPS * max(view.longest_step for view in views))


def blame_hang(views: Collection[RankView]) -> Hang:
    """The rank that the others wait for, from all that is known once their stacks were asked for."""
    now = max(view.heard_at for view in views)
    for view in views:
        if view.state == "T":
            return Hang(view.rank, "is stopped (SIGSTOP or a debugger) while the others wait for it")
    for view in views:
        if view.stacks is None and now - view.heard_at > SILENCE / 2:
            return Hang(view.rank, "does not answer: its watcher is stopped, or its host is overloaded")
    behind = min(views, key=_progress)
    if sum(_progress(view) == _progress(behind) for view in views) * 2 <= len(views):
        where = f"in {behind.beat['at'] or behind.beat['phase']}" if behind.beat else "somewhere"
        return Hang(behind.rank, f"is behind: {where} of step {(behind.step or 0) + 1}, which others have passed")
    odd = _odd_one_out(views)
    return Hang(odd.rank, f"stands elsewhere than the others: {_innermost(odd.stacks or '')}")


def stragglers(views: Sequence[RankView]) -> dict[int, float]:
    """Ranks whose own work took `SLOWER` times the median of all, window after window: rank → times the median."""
    work = {view.rank: _work_of_windows(view) for view in views}
    if len(work) < 3 or any(len(windows) < WINDOWS for windows in work.values()):
        return {}
    from statistics import median  # seldom needed, and slow to import

    slow: dict[int, float] = {}
    usual = [max(1e-9, median(windows[-n] for windows in work.values())) for n in range(1, WINDOWS + 1)]
    for rank, mine in work.items():
        times = [mine[-n] / usual[n - 1] for n in range(1, WINDOWS + 1)]
        if min(times) > SLOWER:
            slow[rank] = median(times)
    return slow


def _work_of_windows(view: RankView) -> list[float]:
    """Busy seconds per step of each whole window."""
    return [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for earlier, later in zip(view.busy, view.busy[1:], strict=False)
    ]


def _progress(view: RankView) -> tuple[int, int]:
    if view.beat is None:
        return -1, 0
    at = view.beat["at"]
    return view.beat["step"], POSITIONS.index(at) if at in POSITIONS else 0


def _odd_one_out(views: Collection[RankView]) -> RankView:
    """The rank whose stack is the rarest; among equals one that does not wait for the others, then the lowest."""
    count: dict[str, int] = {}
    for view in views:
        place = _innermost(view.stacks or "")
        count[place] = count.get(place, 0) + 1
    return min(
        views, key=lambda view: (count[_innermost(view.stacks or "")], _waits_for_others(view.stacks or ""), view.rank)
    )


def _innermost(stacks: str) -> str:
    """Innermost frame of the main thread, which faulthandler writes last, the most recent call first."""
    frames = [line.strip() for line in stacks.rpartition("hread 0x")[2].splitlines() if line.startswith("  File")]
    frames = frames or [line.strip() for line in stacks.splitlines() if line.startswith("  File")]
    return frames[0] if frames else "no Python stack"


def _waits_for_others(stacks: str) -> bool:
    return "torch/distributed" in stacks or "_engine_run_backward" in stacks
