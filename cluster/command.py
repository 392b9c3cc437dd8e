"""From the launcher's options to mpirun's command line, for a launch and for a dry run alike."""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence

from cluster.allocation import Allocation
from cluster.environment import forwarded_names, mpirun_environment, with_project
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
    environ |= with_project(environ)
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


def planned_launch(
    options: Namespace, mpirun: Mpirun, allocation: Allocation, program: Sequence[str], attempt: Attempt
) -> tuple[list[str], dict[str, str]]:
    """mpirun's command line and its environment, of a launch from here. Nothing is written."""
    environ = mpirun_environment(os.environ, allocation, options.nic, mpirun.has_daemon)
    return launch_command(options, mpirun, allocation, program, attempt, environ), environ
