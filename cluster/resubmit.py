"""The same request again: the run goes on from its newest checkpoint.

python -m cluster resubmit a               what `cluster submit` was given for run a, from the same directory
python -m cluster resubmit a --dry-run     shows the command, submits nothing
"""

import contextlib
import json
import sys

from cluster.errors import COMPLETE
from cluster.options import OptionParser, add_output_dir, run, split_program
from cluster.run import Run
from cluster.terminal import plain

USAGE = "python -m cluster resubmit RUN [options]"
EPILOG = "exit status: that of cluster submit; 64 where the run is not over, or cluster submit did not start it"


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    again = Run(options.run, options.output_dir)
    if options.dry_run:
        request = again.request
        as_json = {**request._asdict(), "command": request.command}
        print(json.dumps(as_json, indent=1) if options.json else plain(request.command))
        return COMPLETE
    request = again.request_again()
    if not options.json:
        print(plain(f"submit         {request.command}"), flush=True)
    from cluster.submit import main as submit

    with contextlib.chdir(request.directory):
        return submit(["--json", *without_waiting(request.arguments)] if options.json else request.arguments)


def without_waiting(arguments: list[str]) -> list[str]:
    """The same request, which returns once the job is queued."""
    before, _ = split_program(arguments)
    return [*(word for word in before if word not in ("--wait", "--follow")), *arguments[len(before) :]]


def parser() -> OptionParser:
    options = OptionParser("python -m cluster resubmit", USAGE, str(__doc__), EPILOG)
    options.add_argument("run", metavar="RUN", help="name of an experiment, run directory or job id")
    options.add_argument("--dry-run", action="store_true", help="show the command, submit nothing")
    options.add_argument(
        "--json", action="store_true", help="one JSON object, as submit has it; --dry-run: the request"
    )
    add_output_dir(options)
    return options


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
