"""Stop a run for good: scancel for its job, SIGTERM for a launcher of this machine; waits until it is over.

python -m cluster cancel a                 a name, a run directory or a job id
"""

import json
import sys
import time
from pathlib import Path

from cluster.errors import COMPLETE
from cluster.options import OptionParser, add_output_dir, run
from cluster.run import Run
from cluster.run_state import RunState, Snapshot, look_now
from cluster.runs import name_from_here
from cluster.stop import stop_sweep
from cluster.sweep_file import find_sweep
from cluster.terminal import plain
from cluster.verdict import COMPLETED

USAGE = "python -m cluster cancel RUN [options]"
EPILOG = """\
The run stops where it is: what it made since its newest checkpoint is lost. To save first, send the warning
(scancel --batch --signal=USR1 JOB).
exit status: 0 it is over, 64 it was not running, 70 it could not be stopped from here"""


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    if sweep := find_sweep(options.run, Path(options.output_dir)):
        what = stop_sweep(sweep)
        if options.json:
            from cluster.sweep import report

            what = "\n".join(report(sweep, as_json=True))
        print(plain(what))
        return COMPLETE
    wanted = Run(options.run, options.output_dir)
    what = wanted.cancel()
    found, state = look_now(wanted.directory)
    if options.json:
        from cluster.status import summary

        print(json.dumps(summary(found, state, None, time.time()), indent=1))
    else:
        print(plain(became(what, found, state)))
    return COMPLETE


def parser() -> OptionParser:
    options = OptionParser("python -m cluster cancel", USAGE, str(__doc__), EPILOG)
    options.add_argument("run", metavar="RUN", help="name of an experiment or sweep, run directory or job id")
    options.add_argument(
        "--json", action="store_true", help="what became of it as one JSON object, as by status or sweep"
    )
    add_output_dir(options)
    return options


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
