"""The same request again: the run goes on from its newest checkpoint.

python -m cluster resubmit a               what `cluster submit` was given for run a, from the same directory
python -m cluster resubmit a --dry-run     shows the command, submits nothing
"""

import json
import os
import sys
from pathlib import Path

from cluster.errors import COMPLETE, RequestError
from cluster.options import OptionParser, add_output_dir, run
from cluster.request import Request, read_request
from cluster.run_state import look, states
from cluster.runs import find_run

USAGE = "python -m cluster resubmit RUN [options]"
EPILOG = "exit status: that of cluster submit; 64 where the run is not over, or cluster submit did not start it"


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    run_dir = find_run(options.run, Path(options.output_dir))
    request = request_of(run_dir)
    if options.dry_run:
        as_json = {**request._asdict(), "command": request.command}
        print(json.dumps(as_json, indent=1) if options.json else request.command)
        return COMPLETE
    [state], _ = states([look(run_dir)])
    if not state.is_over:
        raise RequestError(f"{run_dir.name} is {state}: it goes on by itself; cancel it first to submit it anew")
    try:
        os.chdir(request.directory)
    except OSError as error:
        raise RequestError(f"{run_dir.name} was submitted in {request.directory}: {error.strerror}") from error
    from cluster.submit import main as submit

    if options.json:
        return submit(["--json", *request.arguments])
    print(f"submit         {request.command}", flush=True)
    return submit(request.arguments)


def parser() -> OptionParser:
    options = OptionParser("python -m cluster resubmit", USAGE, str(__doc__), EPILOG)
    options.add_argument("run", metavar="RUN", help="name of an experiment, run directory or job id")
    options.add_argument("--dry-run", action="store_true", help="show the command, submit nothing")
    options.add_argument(
        "--json", action="store_true", help="one JSON object, as submit has it; --dry-run: the request"
    )
    add_output_dir(options)
    return options


def request_of(run_dir: Path) -> Request:
    """The run's request. Raises `RequestError` for a run that was started in another way."""
    if request := read_request(run_dir):
        return request
    raise RequestError(
        f"{run_dir.name} was not started by cluster submit: give its own command again (sbatch …, or "
        "python -m cluster.launch …), with the same experiment name it goes on"
    )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
