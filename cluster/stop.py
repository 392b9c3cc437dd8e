"""Stop a run or a sweep for good, by Slurm or on this machine, and wait until nothing of it runs."""

import os
import signal
import time
from pathlib import Path

from cluster import slurm
from cluster.errors import LauncherError, RequestError
from cluster.jobs import job_now
from cluster.lock import Holder, check_is_here, has_lock_open, launcher_holds, read_holder
from cluster.private import check_private
from cluster.run_state import Snapshot, look, look_now, states
from cluster.runs import name_from_here
from cluster.sweep_file import Sweep

WAIT_AT_MOST = 120.0
"""Seconds from the request to the end; Slurm's KillWait is 30 s by default, and epilogs take their time."""
LOOK_EVERY = 0.5


def stop(run_dir: Path) -> str:
    """Stop the run, and wait until nothing of it runs; what was stopped.

    Raises:
        RequestError: it does not run.
        LauncherError: it cannot be stopped from here.
    """
    check_private(run_dir)
    found, state = look_now(run_dir)
    if state.is_over:
        raise RequestError(f"{run_dir.name} is not running: {state}")
    return stop_live(found)


def stop_live(found: Snapshot) -> str:
    """Stop a run that was seen running or waiting. Raises `LauncherError` as `stop` does."""
    holder = read_holder(found.path) if found.held else None
    if job_id := holder.job_id if holder else found.job_id:
        target = cancel_job(job_id)
        what = f"job {target} cancelled"
    else:
        target, what = None, stop_launcher(found.path, holder)
    await_end(found.path, target)
    return what


def stop_sweep(sweep: Sweep) -> str:
    """Stop all that runs or waits of a sweep; what was stopped. Raises as `stop` does."""
    for directory in (sweep.directory, *sweep.run_dirs):
        check_private(directory)
    runs = [look(run_dir) for run_dir in sweep.run_dirs]
    live = [one for one, (state, _) in zip(runs, states(runs), strict=True) if not state.is_over]
    if not live:
        raise RequestError(f"{sweep.directory.name} is not running: none of its {len(runs)} runs is")
    elements = {one.path: job_id for one in live if (job_id := element_id(one))}
    for array in {job_id.partition("_")[0] for job_id in elements.values()}:
        if words := slurm.cancel(array):
            raise LauncherError(f"scancel {array}: {words}")
    for path in (one.path for one in live):
        if job_id := elements.get(path):
            await_end(path, job_id)
            continue
        found, state = look_now(path)
        if not state.is_over:  # it may have ended by itself while others were awaited
            stop_live(found)
    again = f"next: python -m cluster sweep {name_from_here(sweep.directory)} --resume"
    return f"{len(live)} of {len(runs)} runs of {sweep.directory.name} cancelled\n{again}"


def element_id(found: Snapshot) -> str | None:
    """The id of the array element by which the run was submitted last; None for a job of its own."""
    job_id = found.request.job_id if found.request else None
    return job_id if job_id and "_" in job_id else None


def cancel_job(job_id: str) -> str:
    """Have Slurm end the job; the id by which that was asked. Raises `LauncherError` with scancel's own words."""
    target = element_of(slurm.job_detail(job_id, slurm.SOON) or "", job_id)
    if words := slurm.cancel(target):
        raise LauncherError(f"scancel {target}: {words}")
    return target


def element_of(detail: str, job_id: str) -> str:
    """The id by which scancel means this job alone, by ``scontrol show job``.

    The last element of an array has the array's own number, by which scancel would end all of its elements.
    """
    facts = slurm.facts_of(slurm.record_of(detail, job_id), "ArrayJobId|ArrayTaskId")
    element = facts.get("ArrayTaskId", "")
    return f"{facts['ArrayJobId']}_{element}" if element.isdecimal() else job_id


def stop_launcher(run_dir: Path, holder: Holder | None) -> str:
    """SIGTERM to the launcher on this machine; what was done. Raises `LauncherError` where it is not here."""
    if holder is None:
        raise LauncherError(f"{run_dir.name} is just starting: try again in a moment")
    check_is_here(holder, run_dir, f"kill -TERM {holder.pid}")
    try:
        if not has_lock_open(holder.pid, run_dir):
            raise ProcessLookupError
        os.kill(holder.pid, signal.SIGTERM)
    except OSError as error:
        if not launcher_holds(run_dir):
            return f"launcher {holder.pid} ended by itself"
        raise LauncherError(
            f"process {holder.pid} holds {run_dir}, and cannot be stopped from here ({error.strerror or 'not seen'}): "
            "it is another user's, or runs in a container"
        ) from error
    return f"launcher {holder.pid} stopped"


def await_end(run_dir: Path, job_id: str | None) -> None:
    """Return once nothing of it runs any more. Raises `LauncherError` where that takes longer than `WAIT_AT_MOST`."""
    deadline = time.monotonic() + WAIT_AT_MOST
    while time.monotonic() < deadline:
        if not launcher_holds(run_dir):
            state = job_now(job_id) if job_id else None
            if state is None or state.ended:
                return
        time.sleep(LOOK_EVERY)
    raise LauncherError(
        f"{run_dir.name} still ends after {WAIT_AT_MOST:.0f} s: python -m cluster status {name_from_here(run_dir)}"
    )
