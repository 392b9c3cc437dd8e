"""What a run prints: all ranks merged, one of them, errors alone, or the launcher. Reads only.

python -m cluster logs a                     the last lines of every rank
python -m cluster logs a --rank 3 -n all     all of one rank
python -m cluster logs a --follow            every line from now on, through requeues, until the run has ended
python -m cluster logs a --errors            tracebacks, the ranks that failed, the verdict
"""

import json
import re
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from cluster.error_lines import Tracebacks, failed, failure
from cluster.errors import COMPLETE, REQUEUE, RequestError
from cluster.growing_logs import GrowingLog, Render, prefixed, read_all, rest_of_all
from cluster.lock import launcher_holds
from cluster.options import OptionParser, add_output_dir, at_least, run
from cluster.run import launcher_log
from cluster.run_file import read_plan
from cluster.run_state import QUEUED, RUNNING, RunState, look, look_now
from cluster.rundir import Attempt, attempt_of, newest_attempt, rank_log
from cluster.runs import find_run, name_from_here
from cluster.terminal import plain, plain_bytes
from cluster.verdict import judged

USAGE = "python -m cluster logs RUN [options]"
EPILOG = """\
A line of all ranks begins with its rank. Notes of this command (a new attempt, the end) go to standard error.
exit status: 0, also where the run failed; 64 no such run, rank or attempt; 70 the attempt's plan is damaged"""

DEFAULT_LINES = 25
LOOK_EVERY = 0.25
"""Seconds between two looks at the files; longer where a look itself takes long, as on a slow file system."""
FILES_A_SECOND = 4096
"""That are looked at: a file server answers others too. Of 80,000 ranks each is seen every 20 s."""
LOOK_AT_RUN_EVERY = 1.0
ASK_SLURM_EVERY = 10.0


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    run_dir = find_run(options.run, Path(options.output_dir))
    newest = newest_attempt(run_dir)
    if options.attempt is not None and not attempt_of(run_dir, options.attempt).path.is_dir():
        raise RequestError(f"{run_dir} has no attempt {options.attempt}: the newest is {newest}")
    number = options.attempt or newest
    if not options.follow:
        if not number and not options.launcher:
            raise RequestError(
                f"{run_dir.name} has no attempt yet: python -m cluster status {name_from_here(run_dir)}, or --follow"
            )
        logs = logs_of(run_dir, number, options, options.lines)
        lines = [*rest_of_all(logs), verdict_of(run_dir, number, options)]
        copy(lines, sys.stdout.buffer)
        if options.errors and not any(lines):
            note(f"── attempt {number} of {run_dir.name}: no errors")
        return COMPLETE
    follow(run_dir, number, options)
    return COMPLETE


def parser() -> OptionParser:
    options = OptionParser("python -m cluster logs", USAGE, str(__doc__), EPILOG)
    options.add_argument("run", nargs="?", metavar="RUN", help="name, run directory or job id (default: the newest)")
    which = options.add_mutually_exclusive_group()
    which.add_argument("--rank", type=at_least(0), metavar="R", help="this rank alone, its lines as they are")
    which.add_argument("--errors", action="store_true", help="tracebacks, the ranks that failed, the verdict")
    which.add_argument("--launcher", action="store_true", help="the launcher's own log: plan, rank 0, verdicts")
    options.add_argument("--follow", action="store_true", help="go on until the run has ended")
    options.add_argument("--json", action="store_true", help="each line as a JSON object: attempt, rank, time, line")
    options.add_argument("--attempt", type=at_least(1), metavar="N", help="this attempt (default: the newest)")
    options.add_argument(
        "-n",
        "--lines",
        type=number_of_lines,
        default=DEFAULT_LINES,
        metavar="LINES",
        help=f"last lines of each log to begin with (default {DEFAULT_LINES}; 0: none, all: from its beginning)",
    )
    add_output_dir(options)
    return options


def number_of_lines(text: str) -> int | None:
    """An argparse type: a whole number, or None for ``all``."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise ArgumentTypeError(f"given {text!r}, wanted a whole number or all")
    return int(text)


def logs_of(run_dir: Path, number: int, options: Namespace, last: int | None) -> list[GrowingLog]:
    """The files to read of an attempt. Raises `RequestError` where it has no such rank."""
    attempt = attempt_of(run_dir, number)

    def shown(rank: int | None, prefix: str = "") -> Render:
        return as_json(number, rank) if options.json else prefixed(prefix)

    if options.launcher:
        render = as_json(None, None) if options.json else prefixed("")
        return [GrowingLog(launcher_log(run_dir, number), render, last)]
    log_dir, ranks = places_of_logs(attempt)
    if options.rank is not None:
        if options.rank >= ranks:
            raise RequestError(f"attempt {number} of {run_dir.name} has ranks 0 to {ranks - 1}, no rank {options.rank}")
        return [GrowingLog(rank_log(log_dir, options.rank), shown(options.rank), last)]
    width = len(str(max(0, ranks - 1)))
    of_ranks = [(rank_log(log_dir, rank), shown(rank, f"{rank:>{width}}: ")) for rank in range(ranks)]
    if options.errors:
        records = GrowingLog(attempt.records, failures_as_json(number) if options.json else failures)
        logs = [GrowingLog(path, Tracebacks(render)) for path, render in of_ranks]
        return [*logs, records, GrowingLog(attempt.stacks, shown(None))]
    return [GrowingLog(path, render, last) for path, render in of_ranks]


def verdict_of(run_dir: Path, number: int, options: Namespace) -> bytes:
    """With ``--errors``, the verdict on an attempt that failed: a rank whose watcher was killed says nothing itself."""
    entry = next((one for one in look(run_dir).attempts if one["attempt"] == number), {})
    verdict = entry.get("verdict")
    if not options.errors or not verdict or verdict["status"] in (COMPLETE, REQUEUE):
        return b""
    if not options.json:
        return f"── {judged(verdict)}\n".encode(errors="replace")
    ended = entry["started"] + entry["seconds"] if "seconds" in entry else None
    return json_line(number, verdict.get("rank"), judged(verdict), ended)


def failures(records: bytes) -> bytes:
    """What is said of each rank that failed, for people."""
    return "".join(f"── {failure(record)}\n" for record in failed(records)).encode(errors="replace")


def failures_as_json(attempt: int) -> Render:
    """The same for programs: a record knows its time (seconds since 1970)."""

    def render(records: bytes) -> bytes:
        return b"".join(
            json_line(attempt, record["rank"], failure(record), record["time_ns"] / 1e9) for record in failed(records)
        )

    return render


def as_json(attempt: int | None, rank: int | None) -> Render:
    """Each line as an object; `rank` is None where no rank said it, `attempt` in a job's log: there may be several."""

    def render(lines: bytes) -> bytes:
        return b"".join(json_line(attempt, rank, line.decode(errors="replace")) for line in lines[:-1].split(b"\n"))

    return render


def json_line(attempt: int | None, rank: int | None, line: str, when: float | None = None) -> bytes:
    return json.dumps({"attempt": attempt, "rank": rank, "time": when, "line": line}).encode() + b"\n"


def places_of_logs(attempt: Attempt) -> tuple[Path, int]:
    """Directory of the ranks' logs, and how many ranks there are."""
    if plan := read_plan(attempt):
        return plan.log_dir, plan.allocation.world_size
    names = (re.fullmatch(r"rank-(\d+)\.log", path.name) for path in attempt.log_dir.glob("rank-*.log"))
    return attempt.log_dir, max((int(name[1]) + 1 for name in names if name), default=0)


def follow(run_dir: Path, number: int, options: Namespace) -> None:
    """Show what comes until the run has ended, or the attempt where one was named."""
    out, lately = sys.stdout.buffer, LatelySeen(run_dir)
    logs: list[GrowingLog] = []
    if number and not attempt_begun(run_dir, number):
        number -= 1  # its directory is just being made
    if number >= (options.attempt or 1):
        logs = logs_of(run_dir, number, options, options.lines)
    while True:
        began = time.monotonic()
        state = lately.seen(began)
        newest = newest_attempt(run_dir)
        over = state.is_over or (options.attempt is not None and newest > options.attempt)
        for later in range(number + 1, (options.attempt or newest) + 1):
            if not attempt_begun(run_dir, later):
                break
            copy([*rest_of_all(logs), verdict_of(run_dir, number, options)], out)
            if later > 1:
                note(f"── attempt {later}")
            goes_on = logs and options.launcher and launcher_log(run_dir, later) == launcher_log(run_dir, number)
            number = later
            if not goes_on:
                logs = logs_of(run_dir, later, options, None)
        if over:
            if options.launcher and not number:  # it failed before it could begin, as where a module is missing
                logs = logs_of(run_dir, 0, options, None)
            copy([*rest_of_all(logs), verdict_of(run_dir, number, options)], out)
            note(f"── {run_dir.name}: {state}")
            return
        copy(read_all(logs), out)
        time.sleep(max(LOOK_EVERY, time.monotonic() - began, len(logs) / FILES_A_SECOND))


def attempt_begun(run_dir: Path, number: int) -> bool:
    """Whether it is known where its logs are."""
    return attempt_of(run_dir, number).plan.exists()


class LatelySeen:
    """The state of a run, looked at now and then: Slurm is asked only while no launcher holds the directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._look_at = self._ask_at = 0.0
        self._state = RunState(RUNNING)
        self._said = ""

    def seen(self, now: float) -> RunState:
        """The state as it was lately."""
        if now < self._look_at:
            return self._state
        self._look_at = now + LOOK_AT_RUN_EVERY
        if launcher_holds(self._run_dir):
            self._state, self._ask_at = RunState(RUNNING), 0.0
        elif now >= self._ask_at:
            run, self._state = look_now(self._run_dir)
            if run.job_id:
                self._ask_at = time.monotonic() + ASK_SLURM_EVERY
        if self._state.name == QUEUED and str(self._state) != self._said:
            self._said = str(self._state)
            note(f"── {self._run_dir.name}: {self._state}")
        return self._state


def copy(chunks: Iterable[bytes], out: BinaryIO) -> None:
    out.writelines(plain_bytes(chunk, out) for chunk in chunks)
    out.flush()


def note(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
