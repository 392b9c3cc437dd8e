"""My runs in a list; or of one run its attempts, their verdicts, and where the time went. Reads only.

python -m cluster status                    all runs in outputs/, the one that changed last first
python -m cluster status --watch            the same, kept fresh
python -m cluster status smoke_mpi          outputs/smoke_mpi; a run directory and a job id do too
"""

import json
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.allocation import Host
from cluster.errors import COMPLETE, LauncherError, RequestError
from cluster.goodput import Goodput, duration, goodput_lines, totals
from cluster.jobs import Job
from cluster.options import OptionParser, add_output_dir, at_least, run
from cluster.progress import read_progress
from cluster.run_file import RUN_FILE, read_plan
from cluster.run_state import QUEUED, RUNNING, UNFINISHED, RunState, Snapshot, look, states
from cluster.rundir import attempt_of
from cluster.runs import all_runs, find_run
from cluster.sweep_file import all_sweeps
from cluster.terminal import or_dash, plain, table

USAGE = "python -m cluster status [options] [RUN]"
EPILOG = """\
The state comes from the run directory, then from squeue, scontrol and sacct, as far as there are any.
exit status: 0, whatever became of the runs; 64 no such run"""
WATCH_EVERY = 5


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    if options.watch:
        watch(lambda: shown(options), options.watch)
    else:
        print(*map(plain, shown(options)), sep="\n")
    return COMPLETE


def parser() -> OptionParser:
    options = OptionParser("python -m cluster status", USAGE, str(__doc__), EPILOG)
    options.add_argument("run", nargs="?", metavar="RUN", help="name of an experiment, run directory or job id")
    options.add_argument("--json", action="store_true", help="everything as one JSON object")
    options.add_argument(
        "--watch",
        nargs="?",
        type=at_least(1),
        const=WATCH_EVERY,
        metavar="SECONDS",
        help=f"show it again every so many seconds (default {WATCH_EVERY}), in place on a terminal",
    )
    add_output_dir(options)
    return options


def shown(options: Namespace) -> list[str]:
    """The lines of one look."""
    output_dir = Path(options.output_dir)
    paths = all_runs(output_dir) if options.run is None else [find_run(options.run, output_dir)]
    runs = [look(path) for path in paths]
    if options.run is not None and (why := runs[0].damaged):
        raise RequestError(f"{paths[0] / RUN_FILE} cannot be read: {why}")
    now = time.time()
    facts = [summary(run, state, job, now) for run, (state, job) in zip(runs, states(runs), strict=True)]
    if options.run is None:
        if options.json:
            return [json.dumps({"output_dir": str(output_dir.absolute()), "runs": facts}, indent=1)]
        lines = list_lines(facts) if facts else [f"no run in {output_dir.absolute()}"]
        names = ", ".join(path.name for path in all_sweeps(output_dir))
        return [*lines, *([f"sweeps: {names} (python -m cluster sweep NAME)"] if names else [])]
    report = {**facts[0], **attempts_of(runs[0])}
    return [json.dumps(report, indent=1)] if options.json else report_lines(report)


def summary(run: Snapshot, state: RunState, job: Job | None, now: float) -> dict[str, Any]:
    """What the list shows of a run, JSON-able; times are seconds since 1970, lengths of time seconds."""
    progress = read_progress(run.path)
    queued = job if job is not None and state.name == QUEUED else Job("")
    steps = [(attempt.get("steps") or {}).get("last") for attempt in run.attempts]
    return {
        "experiment": run.path.name,
        "run_dir": str(run.path),
        "state": state.name,
        "detail": state.detail,
        "step": progress.step if progress.step is not None else next(filter(None, reversed(steps)), None),
        "total_steps": progress.total,
        "loss": progress.loss,
        "held_out_loss": progress.held_out_loss,
        "tokens_per_second": progress.tokens_per_second,
        "seconds_left": progress.seconds_left if state.name == RUNNING else None,
        "restarts": run.restarts,
        "effective": totals(run.attempts).effective,
        "gpu_hours": gpu_hours(run.attempts, now if state.name == RUNNING else None),
        "job_id": run.job_id,
        "partition": queued.partition or None,
        "queue_position": queued.position,
        "queue_length": queued.waiting,
        "expected_start": queued.start,
    }


def attempts_of(run: Snapshot) -> dict[str, Any]:
    """What a run's own page has beside that."""
    plan = None
    with suppress(LauncherError):  # a damaged one keeps nothing else from being shown
        plan = read_plan(attempt_of(run.path, run.newest.get("attempt", 0)))
    return {
        "attempts": list(run.attempts),
        "goodput": totals(run.attempts).to_json(),
        "excluded_hosts": list(run.excluded_hosts),
        "logs": plan and str(plan.log_dir),
    }


def gpu_hours(attempts: Sequence[Mapping[str, Any]], now: float | None) -> float | None:
    """GPUs of the hosts used times hours, over all attempts; one that runs counts until `now`. None without GPUs."""
    total = 0.0
    for attempt in attempts:
        gpus = sum(Host(*host).gpus or 0 for host in attempt.get("hosts", []))
        is_running = now is not None and attempt is attempts[-1] and "verdict" not in attempt
        total += gpus * (now - attempt["started"] if is_running and now else attempt.get("seconds", 0.0)) / 3600
    return total or None


def list_lines(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The list for people: one line a run."""
    head = ("run", "state", "step", "loss", "tokens/s", "ETA", "restarts", "goodput", "job", "")
    return table([head, *map(_row, facts)], right=range(2, 8))


def _row(fact: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        fact["experiment"],
        fact["state"],
        steps_of(fact),
        or_dash(fact["loss"], ".4f"),
        or_dash(fact["tokens_per_second"], ",.0f"),
        "–" if fact["seconds_left"] is None else duration(fact["seconds_left"]),
        str(fact["restarts"]),
        or_dash(fact["effective"], ".1%"),
        or_dash(fact["job_id"]),
        queue_words(fact),
    )


def steps_of(fact: Mapping[str, Any]) -> str:
    """``204/450``."""
    total = "" if fact["total_steps"] is None else f"/{fact['total_steps']}"
    return "–" if fact["step"] is None else f"{fact['step']}{total}"


def queue_words(fact: Mapping[str, Any]) -> str:
    """Why the state is as it is, and for a queued job its place and Slurm's estimate of its start."""
    words = [fact["detail"]] if fact["detail"] else []
    if fact["queue_position"] is not None:
        words.append(f"{fact['queue_position']} of {fact['queue_length']} in {fact['partition']}")
    if fact["expected_start"] is not None:
        words.append(f"starts about {_clock(fact['expected_start'])}")
    return " · ".join(words)


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """A run's own page for people."""
    state = f"{report['state']} ({report['detail']})" if report["detail"] else report["state"]
    lines = [f"{report['experiment']} · {state} · {report['run_dir']}"]
    if now := now_line(report):
        lines.append(now)
    lines += ["", *attempt_table(report["attempts"], report["state"])]
    goodput = report["goodput"]
    if shares := goodput_lines(Goodput(goodput["seconds"], goodput["attempts"])):
        lines += ["", *shares]
    lines.append("")
    if report["excluded_hosts"]:
        lines.append(f"excluded hosts: {', '.join(report['excluded_hosts'])}")
    newest = (report["attempts"] or [{}])[-1].get("verdict") or {}
    if newest.get("next"):
        lines.append(f"next: {newest['next']}")
    lines.append(f"logs: {report['logs'] or report['run_dir']}")
    return lines


def now_line(report: Mapping[str, Any]) -> str:
    """Where it stands: ``step 204/450 · loss 0.3691 · 13,210 tokens/s · ETA 0:00:37 · job 12``."""
    words = [] if report["step"] is None else [f"step {steps_of(report)}"]
    if report["loss"] is not None:
        words.append(f"loss {report['loss']:.4f}")
    if report["held_out_loss"] is not None:
        words.append(f"held-out loss {report['held_out_loss']:.4f}")
    if report["tokens_per_second"] is not None:
        words.append(f"{report['tokens_per_second']:,.0f} tokens/s")
    if report["seconds_left"] is not None:
        words.append(f"ETA {duration(report['seconds_left'])}")
    if report["gpu_hours"] is not None:
        words.append(f"{report['gpu_hours']:.1f} GPU hours")
    if report["job_id"]:
        words.append(f"job {report['job_id']}")
    if queue := queue_words({**report, "detail": ""}):
        words.append(queue)
    return " · ".join(words)


def attempt_table(attempts: Sequence[Mapping[str, Any]], state: str) -> list[str]:
    """One line an attempt: when, how long, which verdict, who is guilty, and from which step to which."""
    rows = [("attempt", "started", "length", "verdict", "guilty", "steps", "saved")]
    for attempt in attempts:
        verdict = attempt.get("verdict")
        unjudged = state if attempt is attempts[-1] else UNFINISHED
        steps = attempt.get("steps") or {}
        rows.append(
            (
                str(attempt["attempt"]),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt["started"])),
                duration(attempt["seconds"]) if "seconds" in attempt else "–",
                f"{verdict['kind']} ({verdict['status']})" if verdict else unjudged,
                _guilty(verdict or {}),
                f"{or_dash(steps.get('resumed'))} → {or_dash(steps.get('last'))}" if steps else "–",
                or_dash(steps.get("saved")),
            )
        )
    return table(rows)


def watch(look_again: Callable[[], list[str]], seconds: float) -> None:
    """Show the lines again and again until Ctrl-C; on a terminal in place, cut to its size."""
    in_place = sys.stdout.isatty()
    try:
        while True:
            lines = [plain(line) for line in look_again()]
            if in_place:
                sys.stdout.write(frame(lines, *shutil.get_terminal_size(), time.strftime("%H:%M:%S")))
            else:
                print(*lines, "", sep="\n")
            sys.stdout.flush()
            time.sleep(seconds)
    except KeyboardInterrupt:
        pass
    finally:
        if in_place:
            sys.stdout.write("\x1b[?25h")
            sys.stdout.flush()


def frame(lines: Sequence[str], columns: int, rows: int, clock: str) -> str:
    """What redraws a terminal of that size without a flicker: cursor home, every line cut and cleared to its end."""
    room = max(1, rows - 2)
    cut = [*lines[:room], *([f"… {len(lines) - room} more"] if len(lines) > room else [f"{clock}, Ctrl-C ends"])]
    return "\x1b[?25l\x1b[H" + "".join(f"{line[:columns]}\x1b[K\n" for line in cut) + "\x1b[J"


def _clock(seconds: float) -> str:
    """Local time, with the day where it is another one."""
    there, now = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if there[:3] == now[:3] else "%Y-%m-%d %H:%M", there)


def _guilty(verdict: Mapping[str, Any]) -> str:
    if verdict.get("rank") is None:
        return verdict.get("host") or "–"
    gpu = f", GPU {verdict['gpu']}" if verdict.get("gpu") is not None else ""
    return f"rank {verdict['rank']} on {verdict['host']}{gpu}"


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
