"""In which state a run is: by its run directory first, then by what Slurm says of its job. Pure but for `look`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.events import last_event
from cluster.jobs import WAITING, Job, look_up
from cluster.lock import launcher_holds
from cluster.request_file import Request, read_request
from cluster.run_file import read_run
from cluster.sequel import REQUEUE
from cluster.verdict import COMPLETED, PREEMPTED

CLOCKS_DIFFER = 5.0
"""Seconds by which Slurm's clock and the launcher's may differ."""

RUNNING, STARTING, ENDING, QUEUED = "running", "starting", "ending", "queued"
SUSPENDED, UNFINISHED = "suspended", "unfinished"


class RunState(NamedTuple):
    """`name` is one of the six above, or how the run ended: its verdict's kind, or Slurm's word for a job that never
    came to an attempt. `detail` says why, where there is more to say."""

    name: str
    detail: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens unless somebody submits again."""
        return self.name not in (RUNNING, STARTING, ENDING, QUEUED, SUSPENDED)

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


class Snapshot(NamedTuple):
    """What lies in a run directory now. `damaged`: why its run.json cannot be read."""

    path: Path
    attempts: Sequence[Mapping[str, Any]]
    excluded_hosts: Sequence[str]
    request: Request | None
    held: bool
    """Whether a launcher holds the directory now. False also where the file system shows no locks of other hosts."""
    requeued: bool
    """Whether the last thing that happened was that the launcher asked Slurm to queue the job again."""
    damaged: str | None = None

    @property
    def newest(self) -> Mapping[str, Any]:
        return self.attempts[-1] if self.attempts else {}

    @property
    def job_id(self) -> str | None:
        """The job that was submitted last for it; None without Slurm."""
        if self.request and self.request.submitted > self.newest.get("started", 0.0):
            return self.request.job_id
        return self.newest.get("job_id")

    @property
    def has_own_job(self) -> bool:
        """Whether its job was submitted for it and ends with it, as a shell of salloc or a user's script may not."""
        return self.job_id is not None and self.request is not None and self.request.job_id == self.job_id

    @property
    def restarts(self) -> int:
        return max(0, len(self.attempts) - 1)


def look(run_dir: Path) -> Snapshot:
    """Read a run directory; never raises for what lies in it."""
    held, request = launcher_holds(run_dir), read_request(run_dir)
    try:
        run = read_run(run_dir)
        return Snapshot(run_dir, run["attempts"], run["excluded_hosts"], request, held, last_event(run_dir) == REQUEUE)
    except (OSError, ValueError, KeyError) as error:
        return Snapshot(run_dir, [], [], request, held, False, damaged=str(error))


def look_now(run_dir: Path) -> tuple[Snapshot, RunState]:
    """What lies in a run directory, and in which state the run is."""
    found = look(run_dir)
    [(state, _)] = states([found])
    return found, state


def states(runs: Sequence[Snapshot]) -> list[tuple[RunState, Job | None]]:
    """The state of each run, and its job where Slurm knows it, with one question to Slurm for all of them."""
    ids = {run.job_id for run in runs if run.job_id and (run.held or not _is_complete(run))}
    jobs = look_up(ids, {run.job_id for run in runs if run.job_id in ids and not run.held and not _is_settled(run)})
    found = [jobs.known.get(run.job_id or "") for run in runs]
    return [(state_of(run, job, jobs.answered), job) for run, job in zip(runs, found, strict=True)]


def state_of(run: Snapshot, job: Job | None, answered: bool) -> RunState:
    """The state of one run. `job` is its job, `answered` whether Slurm could be asked for it at all."""
    newest = run.newest
    verdict = newest.get("verdict")
    own = bool(newest) and newest.get("job_id") == run.job_id  # the newest attempt is of this very job
    if run.held:
        return RunState(RUNNING)
    if run.damaged:
        return RunState(UNFINISHED, f"run.json cannot be read: {run.damaged}")
    if job is not None and not job.ended:
        if job.state in WAITING:
            return RunState(QUEUED, "" if job.reason == "None" else job.reason)
        if job.state in ("SUSPENDED", "STOPPED"):
            return RunState(SUSPENDED)
        if job.state == "COMPLETING":
            return RunState(ENDING)
        since_start = own and newest["started"] > (job.start or 0.0) - CLOCKS_DIFFER
        if not since_start:
            return RunState(STARTING)
        if not verdict:
            return RunState(RUNNING)
        return RunState(ENDING if _goes_on_by_itself(run) else str(verdict["kind"]))
    if run.job_id and not own:
        if job is not None:
            return RunState(job.state.lower().replace("_", " "), "before its launcher began")
        if answered:
            return RunState(UNFINISHED, f"Slurm no longer knows job {run.job_id}")
        return RunState(QUEUED, "as it was submitted; Slurm does not answer here")
    if verdict:
        if run.requeued and run.job_id and not answered:
            return RunState(QUEUED, "again, as its launcher said; Slurm does not answer here")
        return RunState(str(verdict["kind"]))
    if not newest:
        return RunState(UNFINISHED, "its launcher never began")
    if job is not None:
        return RunState(UNFINISHED, f"job {run.job_id} {job.state.lower().replace('_', ' ')}, without a verdict")
    return RunState(UNFINISHED, "its launcher has gone without a verdict")


def _goes_on_by_itself(run: Snapshot) -> bool:
    """Whether another start may follow a verdict while the job still runs: by its launcher, which has not said its last
    word (`next`), or by Slurm, asked for it or not."""
    verdict = run.newest["verdict"]
    return "next" not in verdict or run.requeued or verdict["kind"] == PREEMPTED or bool(run.newest.get("cut_off"))


def _is_complete(run: Snapshot) -> bool:
    """Whether the run directory alone says that it is over, for good."""
    newest = run.newest
    return newest.get("job_id") == run.job_id and (newest.get("verdict") or {}).get("kind") == COMPLETED


def _is_settled(run: Snapshot) -> bool:
    """Whether the run directory says how its present job ended, if that is in no queue any more."""
    return run.newest.get("job_id") == run.job_id and "verdict" in run.newest
