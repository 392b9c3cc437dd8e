"""Watch over one mpirun and its ranks: pass warnings on, show rank 0's log, end what would not end by itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from cluster.allocation import Allocation
from cluster.blame import is_victim
from cluster.channel import ALL_STACKS, Listener, beat_every
from cluster.errors import LauncherError
from cluster.events import record_event
from cluster.growing_logs import LogFollower
from cluster.machine import adopt_orphans, descendants, die_with_parent
from cluster.preflight import compare
from cluster.private import private, write_private
from cluster.records import Records
from cluster.rundir import Attempt
from cluster.signals import Requests
from cluster.terminal import say
from cluster.watchdog import Hang, RankView, blame_hang, hangs, silent_hosts, stragglers

LOOK_EVERY = 0.1
"""Seconds between two looks at mpirun, the ranks and rank 0's log."""
GRACE_AFTER_FAILURE = 1.0
"""Seconds in which the other ranks may still write their tracebacks. MPICH leaves them running when one exits."""
GRACE_AFTER_VICTIMS = 3.0
"""The same where all that failed only followed another: that one may take longer to say what happened."""
GRACE_AFTER_COMPLETION = 10.0
"""Seconds that mpirun may take to return once all ranks ended well: Open MPI 5.0 sometimes never does (prrte 1839)."""
GRACE_TO_STOP = 2.0
"""Seconds from telling the ranks to stop to SIGTERM for mpirun, and from that to SIGKILL."""
STACKS_WITHIN = 2.0
"""Seconds in which ranks may answer the question for their stacks, beside those that all answers take."""
STACKS_A_SECOND = 5_000
"""Answers that the launcher takes in a second (`tests/benchmark_scale.py`)."""
LAST_WORDS_WITHIN = 3.0
"""Seconds in which ranks may still say how they ended once mpirun has."""
LOOK_AT_DIRECTORY_EVERY = 3.0
COMPARE_EVERY = 1.0
WARNINGS_SAID = 16
"""Of the preflight's: ten thousand clocks may be wrong at once."""
QUIET = 2.5
"""Seconds without a word after which a host may be about to be lost: nobody else is blamed before that is known."""
START_WITHIN = 600.0
"""Seconds from mpirun's start within which every rank must have begun."""
FOLLOW_WITHIN = 60.0
"""Seconds within which every rank must have begun once half of them have."""


class End(NamedTuple):
    """What was seen when everything is over. `status` is mpirun's exit status (negative: a signal)."""

    status: int
    lost_hosts: tuple[str, ...]
    unfit: tuple[tuple[str, str], ...]
    hang: dict[str, Any] | None
    vanished: tuple[int, ...]
    """Ranks whose watcher was gone without a last word, in order of time."""
    killed: bool
    """Whether mpirun had ended, by a signal, before anything told it to."""
    views: tuple[RankView, ...]
    seconds: float
    cut_off: bool = False
    """Whether it was this host that lost the network, and not the others."""


@dataclass
class Noticed:
    """What happened so far: monotonic seconds, or None where it has not happened."""

    failed_at: float | None = None
    culprit_at: float | None = None
    """When a rank failed that is not plainly a victim."""
    ended_well_at: float | None = None
    asked_at: float | None = None
    """When the ranks of a hang were asked for their stacks."""
    hung: list[RankView] = field(default_factory=list)
    """How they stood then."""
    stop_at: float | None = None
    lost_hosts: list[str] = field(default_factory=list)
    unfit: list[tuple[str, str]] = field(default_factory=list)
    hang: dict[str, Any] | None = None
    vanished: dict[int, float] = field(default_factory=dict)

    def overdue(self, now: float, is_quiet: Callable[[float], bool]) -> bool:
        """Whether everything should have ended by now: something failed, or all ended well, and had its time.

        While some host `is_quiet`, ranks that only followed another do not end the attempt: it may be its fault.
        """
        if self.lost_hosts or self.unfit or self.hang:
            return True
        culprit = self.culprit_at is not None and now - self.culprit_at > GRACE_AFTER_FAILURE
        failed = self.failed_at is not None and now - self.failed_at > GRACE_AFTER_VICTIMS and not is_quiet(now)
        vanished = now - min(self.vanished.values(), default=now) > GRACE_AFTER_FAILURE
        ended_well = self.ended_well_at is not None and now - self.ended_well_at > GRACE_AFTER_COMPLETION
        return culprit or failed or vanished or ended_well


class Supervision:
    """One attempt while it runs."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        secrets: Mapping[str, str],
        allocation: Allocation,
        attempt: Attempt,
        listener: Listener,
        requests: Requests,
        hang_timeout: float,
    ) -> None:
        self.records = Records(attempt.records, secrets)
        self._command, self._environ = command, environ
        self._allocation, self._world_size, self._attempt = allocation, allocation.world_size, attempt
        self._places, self._nodes = allocation.rank_map(), len({host.name for host in allocation.hosts})
        self._listener, self._requests = listener, requests
        self._hang_timeout = hang_timeout
        self._beat_every = beat_every(self._world_size)
        self._quiet = max(QUIET, 1.5 * self._beat_every)
        self._views: dict[int, RankView] = {}
        self._noticed = Noticed()
        self._shown = LogFollower(attempt.log_of(0), sys.stdout.buffer)
        self._slow: set[int] = set()
        self._half_begun_at: float | None = None
        self._facts: dict[str, dict[str, Any]] = {}
        self._facts_heard_at: dict[str, float] = {}
        self._told_to_stop: set[int] = set()
        self._stopping: set[int] = set()  # SIGTERM reached them: whatever follows, they did not begin it
        self._gone: set[int] = set()
        self._begun_at = self._looked_at = self._directory_seen_at = self._compared_at = time.monotonic()

    def run(self) -> End:
        """Run mpirun to its end. Its own output goes to ``mpirun.log``, rank 0's to standard output.

        Raises `LauncherError` where it cannot be started, and where the attempt's directory has gone.
        """
        adopt_orphans()
        try:
            with open(self._attempt.mpirun_log, "wb", opener=private) as log:
                self._mpirun = subprocess.Popen(
                    self._command,
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509 (no other thread runs here)
                )
        except OSError as error:
            raise LauncherError(f"mpirun cannot be started: {error}") from error
        try:
            with self._listener.keep_alive(self._beat_every):
                killed = self._watch()
                self._hear_last_words()
        finally:
            self._kill_mpirun()
            self._listener.close()
            self.records.close()
        self._shown.copy_new()
        noticed = self._noticed
        return End(
            self._mpirun.returncode,
            tuple(noticed.lost_hosts),
            tuple(noticed.unfit),
            noticed.hang,
            tuple(sorted(noticed.vanished, key=lambda rank: noticed.vanished[rank])),
            killed,
            tuple(self._views.values()),
            time.monotonic() - self._begun_at,
        )

    def _watch(self) -> bool:
        """Until mpirun has ended. Whether it was killed, by nobody here."""
        noticed = self._noticed
        while self._mpirun.poll() is None:
            self._hear(LOOK_EVERY)
            now = time.monotonic()
            if now - self._looked_at < LOOK_EVERY * self._beat_every:
                continue  # words come one by one; of all ranks the whole is seen now and then
            self._shown.copy_new()
            self._judge(now)
            if now - self._directory_seen_at > LOOK_AT_DIRECTORY_EVERY:
                self._directory_seen_at = now
                self._check_directory()
            if self._requests.warnings and self.records.count("started") == self._world_size:
                self._listener.tell({"do": "warn", "signal": self._requests.warnings.pop()})
                if self._requests.by_keyboard:
                    say(["Ctrl-C: the ranks are asked to save and stop; once more stops them now"])
                self._requests.told()
            if self._requests.stopped_by is not None and noticed.stop_at is None:
                noticed.stop_at = now
            if noticed.stop_at is None and noticed.overdue(now, self._is_quiet):
                noticed.stop_at = now
            if noticed.stop_at is not None:
                self._stop(now - noticed.stop_at)
        self._check_directory()  # ranks that start late cannot read their plan: that is not what happened
        return noticed.stop_at is None and self._mpirun.returncode < 0

    def _is_quiet(self, now: float) -> bool:
        return bool(silent_hosts(self._running(), now, self._quiet))

    def _hear(self, seconds: float) -> None:
        """Take in what ranks say."""
        for rank, message in self._listener.exchange(seconds):
            now = time.monotonic()
            if record := message.get("record"):
                self._take(record, now)
            if facts := message.get("node"):
                self._compare_nodes(self._places[rank].host, facts)
            if message.get("stopping"):
                self._stopping.add(rank)
            if message.get("closed"):
                self._gone.add(rank)
                if rank not in self.records.ended and rank not in self._stopping:
                    self._noticed.vanished[rank] = now
            elif view := self._views.get(rank):
                view.hear(message, now)
        self.records.flush()

    def _compare_nodes(self, host: str, facts: dict[str, Any]) -> None:
        """The preflight's comparison, as soon as every node has told of itself; ranks import meanwhile."""
        self._facts[host], self._facts_heard_at[host] = facts, time.time()
        if len(self._facts) < self._nodes:
            return
        names = dict.fromkeys(host.name for host in self._allocation.hosts)
        unfit, warnings = compare({name: self._facts[name] for name in names}, self._facts_heard_at)
        self._noticed.unfit += unfit
        say(f"warning: {warning}" for warning in warnings[:WARNINGS_SAID])
        if len(warnings) > WARNINGS_SAID:
            say([f"warning: … and {len(warnings) - WARNINGS_SAID} more like these"])

    def _take(self, record: dict[str, Any], now: float) -> None:
        rank = record["rank"]
        if record["state"] == "started":
            view = RankView(rank, record["host"], record["gpu"], heard_at=now, moved_at=now)
            self._views[rank] = view
            self.records.add(record)
            return
        self.records.add({**record, "step": self._views[rank].step if rank in self._views else None})
        self._listener.tell({"do": "leave"}, [rank])
        if record["state"] == "failed":
            self._noticed.failed_at = self._noticed.failed_at or now
            if self._noticed.culprit_at is None and not is_victim(record):
                self._noticed.culprit_at = now
        elif self.records.count("complete") + self.records.count("saved") == self._world_size:
            self._noticed.ended_well_at = now

    def _judge(self, now: float) -> None:
        """Notice what no rank says: silence, hangs, slowness."""
        noticed = self._noticed
        if now - self._looked_at > 2 * self._beat_every:
            for view in self._views.values():
                view.heard_at = view.moved_at = now  # this process itself was stopped: everybody has their time anew
        self._looked_at = now
        if noticed.stop_at is not None:
            return
        running = self._running()
        noticed.lost_hosts = silent_hosts(running, now)
        if self._half_begun_at is None and 2 * len(self._views) >= self._world_size:
            self._half_begun_at = now
        late = self._half_begun_at is not None and now - self._half_begun_at > FOLLOW_WITHIN
        if (late or now - self._begun_at > START_WITHIN) and len(self._views) < self._world_size:
            absent = (place.host for place in self._places if place.rank not in self._views)
            noticed.lost_hosts = list(dict.fromkeys(absent))
        if noticed.asked_at is not None:
            within = STACKS_WITHIN + self._world_size / STACKS_A_SECOND
            if now - noticed.asked_at > within or all(view.stacks is not None for view in running):
                hung = [replace(view, stacks=self._views[view.rank].stacks) for view in noticed.hung]
                noticed.hang = self._explain(blame_hang(hung), hung)
        elif running and noticed.failed_at is None and hangs(running, now, self._hang_timeout):
            # The question itself may wake a rank from the call in which it hung: what counts is how they stood before.
            noticed.asked_at, noticed.hung = now, [replace(view) for view in running]
            self._listener.tell(question_for_stacks(self._world_size))
        if now - self._compared_at > COMPARE_EVERY:
            self._compared_at = now
            self._warn_of_stragglers(running)

    def _warn_of_stragglers(self, running: Sequence[RankView]) -> None:
        for rank, times in stragglers(running).items():
            if rank not in self._slow:
                self._slow.add(rank)
                view = self._views[rank]
                facts = {"rank": rank, "host": view.host, "gpu": view.gpu, "times_the_median": round(times, 2)}
                record_event(self._attempt.run_dir, "straggler", attempt=self._attempt.number, **facts)
                say([f"warning: rank {rank} on {view.host} takes {times:.1f} times as long as the others"])

    def _check_directory(self) -> None:
        """Raise `LauncherError` where the attempt's directory was deleted under its ranks."""
        if not self._attempt.path.is_dir():
            raise LauncherError(f"{self._attempt.path} has gone while its ranks ran: they were stopped")

    def _running(self) -> list[RankView]:
        """Ranks that began, and neither said how they ended nor are gone."""
        ended, gone = self.records.ended, self._gone
        return [view for rank, view in self._views.items() if rank not in ended and rank not in gone]

    def _explain(self, hang: Hang, views: Sequence[RankView]) -> dict[str, Any]:
        guilty = self._views[hang.rank]
        stacks = [
            f"rank {view.rank} on {view.host} ({_where(view)}):\n{(view.stacks or 'no answer').rstrip()}"
            for view in sorted(views, key=lambda view: view.rank)
        ]
        with suppress(OSError):  # a full disk
            write_private(self._attempt.stacks, "\n\n".join(stacks) + "\n")
        return {
            "rank": hang.rank,
            "host": guilty.host,
            "gpu": guilty.gpu,
            "step": guilty.step,
            "summary": hang.summary,
            "stacks": guilty.stacks or "",
        }

    def _stop(self, seconds: float) -> None:
        """End the ranks, then mpirun if it stays, so many seconds after the decision."""
        if seconds > 2 * GRACE_TO_STOP:
            self._kill_mpirun()
        elif seconds > GRACE_TO_STOP:
            self._mpirun.terminate()
        self._tell_to_stop()

    def _tell_to_stop(self) -> None:
        new = self._listener.connected - self._told_to_stop
        self._listener.tell({"do": "stop"}, new)
        self._told_to_stop |= new

    def _kill_mpirun(self) -> None:
        """mpirun and what it started here: the srun that started its daemons elsewhere, and the ranks of this host."""
        self._mpirun.kill()
        self._mpirun.wait()
        for left in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # what was adopted and has ended

    def _hear_last_words(self) -> None:
        """mpirun has ended, so ranks that are left have no attempt any more. Hosts that do not hear that are lost."""
        deadline = time.monotonic() + LAST_WORDS_WITHIN
        while (now := time.monotonic()) < deadline:
            if not [view for view in self._running() if view.host not in self._noticed.lost_hosts]:
                return
            self._tell_to_stop()
            self._hear(LOOK_EVERY)
        lost = silent_hosts(self._running(), now, self._quiet)
        self._noticed.lost_hosts += [host for host in lost if host not in self._noticed.lost_hosts]


def question_for_stacks(ranks: int) -> dict[str, Any]:
    """What the launcher asks each of so many ranks that hang."""
    return {"do": "stacks", "letters": ALL_STACKS // ranks}


def _where(view: RankView) -> str:
    if view.beat is None:
        return f"process state {view.state or 'unknown'}"
    at = f", {view.beat['at']}" if view.beat["at"] else ""
    return f"{view.beat['phase']}{at}, {view.beat['step']} steps made, process state {view.state or 'unknown'}"
