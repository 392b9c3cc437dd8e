"""Is this place fit for a run? Slurm, mpirun, Python and torch, GPUs, folders, network, limits: one line each.

python -m cluster doctor                    this machine, such as the login node
python -m cluster doctor --nodes 2          in an allocation: two of its nodes, measured together
python -m cluster doctor --cluster local --nodes 2
"""

import json
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from cluster import checks
from cluster.checks import OK, WRONG, Finding
from cluster.errors import COMPLETE, LAUNCHER, RequestError
from cluster.options import OptionParser, add_output_dir, at_least, run
from cluster.terminal import plain

USAGE = "python -m cluster doctor [options]"
EPILOG = """\
exit status: 0 nothing is wrong (warnings or not), 64 the request is wrong, 70 something is wrong, and with --nodes
that of the measurement: 71 a node is not fit"""


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    if options.nodes is not None:
        if options.json:
            raise RequestError("--json is for the findings of this machine: leave it out, or --nodes")
        return measure_nodes(options)
    findings = examine(options)
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        print(*map(plain, lines(findings)), sep="\n")
    return LAUNCHER if any(finding.level == WRONG for finding in findings) else COMPLETE


def parser() -> OptionParser:
    options = OptionParser("python -m cluster doctor", USAGE, str(__doc__), EPILOG)
    options.add_argument("--nodes", type=at_least(1), metavar="N", help="measure so many nodes of the allocation")
    options.add_argument("--ranks-per-node", type=at_least(1), metavar="N", help="ranks on each, as for cluster.launch")
    options.add_argument(
        "--cluster",
        choices=("auto", "slurm", "local"),
        default="auto",
        help="with --nodes: where, as for cluster.launch",
    )
    options.add_argument(
        "--mpirun", metavar="PATH", help="which mpirun (default: first on PATH, then beside this Python)"
    )
    add_output_dir(options)
    options.add_argument("--json", action="store_true", help="the findings as JSON")
    return options


def examine(options: Namespace) -> list[Finding]:
    """All checks of this machine, in the order of a run."""
    return [
        *checks.check_slurm(os.environ),
        *checks.check_mpirun(options.mpirun, os.environ),
        *checks.check_python(sys.executable, os.environ),
        *checks.check_folders(Path(options.output_dir), os.environ),
        *checks.check_network(os.environ),
        *checks.check_limits(),
    ]


def lines(findings: Sequence[Finding]) -> list[str]:
    """For people: each finding, what to do under those that are not ok, and how many there are of each."""
    name_width = max(len(finding.name) for finding in findings)
    shown = []
    for finding in findings:
        shown.append(f"{finding.level:<6} {finding.name:<{name_width}}  {finding.found}")
        if finding.level != OK:
            shown.append(f"{'':<{name_width + 9}}→ {finding.fix}")
    counts = [f"{sum(finding.level == level for finding in findings)} {level}" for level in (OK, checks.WARN, WRONG)]
    return [*shown, "", ", ".join(counts)]


def measure_nodes(options: Namespace) -> int:
    """Start a small program on the nodes that multiplies and exchanges messages; its status.

    Its run directory stays where that is not 0. Raises `RequestError` where there is no allocation to do it in.
    """
    in_slurm = options.cluster != "local"
    if in_slurm and "SLURM_JOB_ID" not in os.environ:
        raise RequestError(
            f"--nodes {options.nodes} measures the nodes of an allocation, and this shell is in none: "
            f"salloc --nodes={options.nodes} --gpus-per-node=… python -m cluster doctor --nodes {options.nodes}, "
            "or give --cluster local"
        )
    granted = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if in_slurm and options.nodes > granted:
        raise RequestError(f"--nodes {options.nodes}: this allocation has {granted}; ask for more, or measure fewer")
    from cluster import launch

    folder, status = tempfile.mkdtemp(prefix="doctor-", dir=_shared_folder(options)), COMPLETE
    arguments = ["--cluster", options.cluster, "--experiment-name", "doctor", "--output-dir", folder]
    if not in_slurm:
        arguments += ["--nodes", str(options.nodes)]
    elif options.nodes < granted:
        arguments += ["--spare-nodes", str(granted - options.nodes)]
    for option, value in (("--ranks-per-node", options.ranks_per_node), ("--mpirun", options.mpirun)):
        arguments += [option, str(value)] if value is not None else []
    try:
        status = launch.main([*arguments, "--", sys.executable, "-m", "training.check_hosts"])
    finally:
        if status == COMPLETE:  # else its last line names a log in there
            shutil.rmtree(folder)
    return status


def _shared_folder(options: Namespace) -> str:
    """A folder that all nodes see: the parent of the run directories."""
    folder = os.path.abspath(str(options.output_dir))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
