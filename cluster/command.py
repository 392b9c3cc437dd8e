"""From the launcher's options to mpirun's command line, for a launch and for a dry run alike."""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from cluster.allocation import Allocation
from cluster.environment import forwarded_names
from cluster.mpirun import HYDRA, Mpirun, mpirun_command
from cluster.rundir import Attempt


def launch_command(
    options: Namespace,
    mpirun: Mpirun,
    allocation: Allocation,
    program: Sequence[str],
    attempt: Attempt,
    environ: dict[str, str],
) -> list[str]:
    """mpirun's command line; values of ``-x NAME=VALUE`` go into `environ`, so that ps shows the name alone."""
    environ.update({name: value for name, value in options.forward if value is not None})
    ssh = options.ssh
    if ssh and mpirun.dialect is HYDRA:
        ssh, *rest = shlex.split(ssh)
        environ["HYDRA_LAUNCHER_EXTRA_ARGS"] = shlex.join(rest)
    add_project(environ)
    return mpirun_command(
        mpirun,
        allocation,
        hostfile=str(attempt.hostfile),
        program=[sys.executable, "-m", "cluster.rank", str(attempt.plan), "--", *program],
        forward=forwarded_names(environ, [*(name for name, _ in options.forward), *options.secret]),
        wdir=os.path.abspath(options.wdir or "."),
        bind_to=options.bind_to,
        nic=options.nic,
        ssh=ssh,
        extra=options.mpirun_arg,
    )


def add_project(environ: dict[str, str]) -> None:
    """Let Python find the project from whatever working directory, where it is not installed."""
    home = str(Path(__file__).parent.parent)
    if os.path.basename(home) not in ("site-packages", "dist-packages"):
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, environ.get("PYTHONPATH")]))
