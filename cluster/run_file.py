"""run.json and the other small JSON files: written aside and renamed.

    {"experiment": "smoke_mpi", "excluded_hosts": ["n2"], "attempts": [
        {"attempt": 1, "started": 1790000000.0, "ended": …, "seconds": …, "job_id": "7", "restart_count": "0",
         "source": "slurm", "hosts": [["n1", 8, 8, 64], …],
         "verdict": {"kind", "status", "summary", "rank", "host", "gpu", "step", "detail", "next"},
         "steps": {"resumed": 0, "last": 17, "saved": 10}, "cut_off": false,
         "accounting": {"queue": 2.1, "start": 4.0, …}}]}     seconds, see cluster.goodput

An attempt without `verdict` runs, or its launcher was killed. The verdict's `next` is the launcher's last word:
before it another attempt may follow. `cut_off` is whether its first host lost the network: Slurm then queues the job
again.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cluster.allocation import Allocation, Host
from cluster.errors import LAUNCHER, NODE, LauncherError
from cluster.goodput import account
from cluster.private import private
from cluster.rundir import Attempt, attempt_of
from cluster.verdict import LAUNCHER_FAILED, NODE_LOST, Verdict

RUN_FILE = "run.json"


def write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """Write aside and rename: a reader sees the old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", opener=private) as file:
        file.write(json.dumps(data, indent=indent) + "\n")
        file.flush()
        os.fsync(file.fileno())  # else a host that loses its power may leave an empty file under the new name
    aside.rename(path)


def read_json(path: Path) -> Any:
    """Content of a JSON file, None where there is none. Raises ValueError where it is no JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class Plan(NamedTuple):
    """plan.json of an attempt: its hosts and ranks, where their logs are, and all that it says."""

    allocation: Allocation
    log_dir: Path
    facts: Mapping[str, Any]


def read_plan(attempt: Attempt) -> Plan | None:
    """The plan of an attempt; None before it is there. Raises `LauncherError` where it is damaged."""
    try:
        facts = read_json(attempt.plan)
        return Plan(Allocation.from_json(facts), Path(facts["log_dir"]), facts) if facts else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LauncherError(f"{attempt.plan} is damaged ({error}): look at the files beside it") from error


def read_run(run_dir: Path) -> dict[str, Any]:
    """run.json, or that of a run without attempts."""
    run: dict[str, Any] = read_json(run_dir / RUN_FILE) or {"experiment": run_dir.name, "attempts": []}
    run.setdefault("excluded_hosts", [])
    return run


def record_attempt(attempt: Attempt, facts: Mapping[str, Any]) -> None:
    """Add or update one attempt in run.json."""
    run = read_run(attempt.run_dir)
    attempts: dict[int, dict[str, Any]] = {entry["attempt"]: entry for entry in run["attempts"]}
    attempts[attempt.number] = {**attempts.get(attempt.number, {}), "attempt": attempt.number, **facts}
    run["attempts"] = list(attempts.values())
    write_json(attempt.run_dir / RUN_FILE, run)


def put_damaged_aside(run_dir: Path) -> None:
    """Let the run go on where its run.json cannot be read, as after a loss of power. For the launcher alone."""
    path = run_dir / RUN_FILE
    try:
        read_json(path)
    except ValueError:
        path.rename(path.with_name(f"{RUN_FILE}.damaged"))


def close_unfinished_attempts(run_dir: Path, own_job: Mapping[str, str]) -> None:
    """Give a verdict to attempts whose launcher was killed before it could; nobody else runs in this directory now.

    `own_job` is this launcher's, see `own_job.job_facts`. Where Slurm has started that very job again since, it was the
    launcher's host that was lost.
    """
    run = read_run(run_dir)
    unfinished = [entry for entry in run["attempts"] if "verdict" not in entry]
    for entry in unfinished:
        ended = max(
            (file.stat().st_mtime for file in attempt_of(run_dir, entry["attempt"]).path.rglob("*")),
            default=entry["started"],
        )
        verdict = Verdict(LAUNCHER_FAILED, LAUNCHER, "the launcher was killed before it could say how this ended")
        same_job = "job_id" in own_job and entry.get("job_id") == own_job["job_id"]
        if same_job and entry.get("restart_count") != own_job.get("restart_count"):
            host = Host(*entry["hosts"][0]).name
            verdict = Verdict(NODE_LOST, NODE, f"{host} was lost, and the launcher with it", host=host)
        entry |= _nothing_kept(entry, ended, verdict)
    if unfinished:
        write_json(run_dir / RUN_FILE, run)


def close_attempt(attempt: Attempt, verdict: Verdict) -> None:
    """Give a verdict to an attempt that its launcher cannot carry out, where it has begun."""
    for entry in read_run(attempt.run_dir)["attempts"]:
        if entry["attempt"] == attempt.number:
            record_attempt(attempt, _nothing_kept(entry, time.time(), verdict))


def _nothing_kept(entry: Mapping[str, Any], ended: float, verdict: Verdict) -> dict[str, Any]:
    """What run.json says of the end of an attempt whose time counts as lost, and after which its launcher goes."""
    seconds = ended - entry["started"]
    spent = account(entry.get("queued"), entry["started"], ended, None, kept=False)
    return {
        "ended": ended,
        "seconds": seconds,
        "verdict": {**verdict._asdict(), "next": None},
        "accounting": {**spent, "start": 0.0, "lost": seconds},
    }


def exclude_host(run_dir: Path, host: str) -> None:
    """Write down a host that the present job leaves out from now on."""
    run = read_run(run_dir)
    write_json(run_dir / RUN_FILE, {**run, "excluded_hosts": list(dict.fromkeys([*run["excluded_hosts"], host]))})
