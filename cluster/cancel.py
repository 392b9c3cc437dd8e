"""Stop a run for good: scancel for its job, SIGTERM for a launcher of this machine; waits until it is over.

python -m cluster cancel a                 a name, a run directory or a job id
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from cluster import slurm
from cluster.errors import COMPLETE, LauncherError, RequestError
from cluster.lock import Holder, has_lock_open, launcher_holds, read_holder
from cluster.options import OptionParser, add_output_dir, run
from cluster.private import check_private
from cluster.run import Run
from cluster.run_state import RunState, Snapshot, look, look_now, states
from cluster.runs import name_from_here
from cluster.sweep_file import Sweep, find_sweep
from cluster.verdict import COMPLETED

USAGE = "python -m cluster cancel RUN [options]"
EPILOG = """\
The run stops where it is: what it made since its newest checkpoint is lost. To save first, send the warning
(scancel --batch --signal=USR1 JOB).
exit status: 0 it is over, 64 it was not running, 70 it could not be stopped from here"""

WAIT_AT_MOST = 120.0
"""Seconds from the request to the end; Slurm's KillWait is 30 s by default, and epilogs take their time."""
LOOK_EVERY = 0.5


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    if sweep := find_sweep(options.run, Path(options.output_dir)):
        what = stop_sweep(sweep)
        if options.json:
            from cluster.sweep import report

            what = "\n".join(report(sweep, as_json=True))
        print(what)
        return COMPLETE
    wanted = Run(options.run, options.output_dir)
    what = wanted.cancel()
    found, state = look_now(wanted.directory)
    if options.json:
        from cluster.status import summary

        print(json.dumps(summary(found, state, None, wanted.progress, time.time()), indent=1))
    else:
        print(became(what, found, state))
    return COMPLETE


def parser() -> OptionParser:
    options = OptionParser("python -m cluster cancel", USAGE, str(__doc__), EPILOG)
    options.add_argument("run", metavar="RUN", help="name of an experiment or sweep, run directory or job id")
    options.add_argument(
        "--json", action="store_true", help="what became of it as one JSON object, as by status or sweep"
    )
    add_output_dir(options)
    return options


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
    holder = read_holder(run_dir) if found.held else None
    if job_id := holder.job_id if holder else found.job_id:
        target = cancel_job(job_id)
        what = f"job {target} cancelled"
    else:
        target, what = None, stop_launcher(run_dir, holder)
    await_end(run_dir, target)
    return what


def stop_sweep(sweep: Sweep) -> str:
    """Stop all that runs or waits of a sweep; what was stopped. Raises as `stop` does."""
    for directory in (sweep.directory, *sweep.run_dirs):
        check_private(directory)
    runs = [look(run_dir) for run_dir in sweep.run_dirs]
    live = [one for one, state in zip(runs, states(runs)[0], strict=True) if not state.is_over]
    if not live:
        raise RequestError(f"{sweep.directory.name} is not running: none of its {len(runs)} runs is")
    elements = {one.path: job_id for one in live if (job_id := element_id(one))}
    for array in {job_id.partition("_")[0] for job_id in elements.values()}:
        if words := slurm.cancel(array):
            raise LauncherError(f"scancel {array}: {words}")
    for path in (one.path for one in live):
        if job_id := elements.get(path):
            await_end(path, job_id)
        else:
            stop(path)
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
    here = os.uname().nodename
    if holder.host != here:
        raise LauncherError(
            f"the launcher of {run_dir.name} runs on {holder.host}, this is {here}: "
            f"ssh {holder.host} kill -TERM {holder.pid}"
        )
    try:
        if not has_lock_open(holder.pid, run_dir):
            raise ProcessLookupError
        os.kill(holder.pid, signal.SIGTERM)
    except OSError as error:
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
            state = slurm.job_state(job_id) if job_id else None
            if state is None or state.ended:
                return
        time.sleep(LOOK_EVERY)
    raise LauncherError(
        f"{run_dir.name} still ends after {WAIT_AT_MOST:.0f} s: python -m cluster status {run_dir.name}"
    )


def became(what: str, found: Snapshot, state: RunState) -> str:
    """``job 12 cancelled · a: cancelled · step 17, saved 10``, and how to go on."""
    words = [what, f"{found.path.name}: {state}"]
    if last := newest_step(found, "last"):
        words.append(f"step {last}, saved {newest_step(found, 'saved', 'resumed') or 'none'}")
    goes_on = found.request and state.name != COMPLETED
    again = f"\nnext: python -m cluster resubmit {name_from_here(found.path)}" if goes_on else ""
    return " · ".join(words) + again


def newest_step(found: Snapshot, *names: str) -> int | None:
    """The highest of these steps, of the newest attempt that came so far as to have one; None where none did."""
    of_attempts = [attempt.get("steps") or {} for attempt in reversed(found.attempts)]
    return next(filter(None, (max(steps.get(name) or 0 for name in names) for steps in of_attempts)), None)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
