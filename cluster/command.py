"""From the launcher's options to mpirun's command line and its environment, for a launch and a dry run alike."""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cluster.allocation import Allocation
from cluster.environment import forwarded_names, mpirun_environment, with_project
from cluster.mpirun import HYDRA, Mpirun, mpirun_command
from cluster.rundir import Attempt


def launch_environment(options: Namespace, mpirun: Mpirun, allocation: Allocation) -> dict[str, str]:
    """mpirun's environment, from here: values of ``-x NAME=VALUE`` are in it, so that ps shows the name alone."""
    environ = mpirun_environment(os.environ, allocation, options.nic, mpirun.has_daemon)
    environ |= {name: value for name, value in options.forward if value is not None}
    if options.ssh and mpirun.dialect is HYDRA:
        environ["HYDRA_LAUNCHER_EXTRA_ARGS"] = shlex.join(shlex.split(options.ssh)[1:])
    return with_project(environ)


def launch_command(
    options: Namespace,
    mpirun: Mpirun,
    allocation: Allocation,
    program: Sequence[str],
    attempt: Attempt,
    environ: Mapping[str, str],
) -> list[str]:
    """mpirun's command line in that environment. Nothing is written."""
    rank = [sys.executable, "-m", "cluster.rank", str(attempt.plan), "--", *program]
    return bare_command(options, mpirun, allocation, rank, attempt.hostfile, environ)


def bare_command(
    options: Namespace,
    mpirun: Mpirun,
    allocation: Allocation,
    program: Sequence[str],
    hostfile: Path,
    environ: Mapping[str, str],
    forward: Iterable[str] = (),
) -> list[str]:
    """The same for a program without our ranks around it; the variables named in `forward` are handed on too."""
    return mpirun_command(
        mpirun,
        allocation,
        hostfile=str(hostfile),
        program=program,
        forward=forwarded_names(environ, [*(name for name, _ in options.forward), *options.secret, *forward]),
        wdir=os.path.abspath(options.wdir or "."),
        bind_to=options.bind_to,
        nic=options.nic,
        ssh=shlex.split(options.ssh)[0] if options.ssh and mpirun.dialect is HYDRA else options.ssh,
        extra=options.mpirun_arg,
    )
