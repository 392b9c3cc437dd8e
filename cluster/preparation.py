"""`--prepare-first`: the data's tokens are made before the training, by a job of its own, or here."""

import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from cluster.errors import RequestError, refused_by
from cluster.plan import ResourcePlan, batch_script, check_sbatch_options, log_pattern
from cluster.request import forwarded_environment, sbatch_option, site_setup
from cluster.trainer import PREPARATION, name_run_directory

FIXED = ("nodes", "ntasks", "ntasks-per-node", "output", "error", "array")
"""What that job has whatever `--prepare-sbatch` says: one task on one node, and a log in the run directory."""


def preparation_command(program: list[str], run_dir: Path) -> str:
    """The trainer's own arguments, for the program that makes the tokens ahead."""
    python, _, _, *arguments = name_run_directory(program, run_dir)
    return shlex.join([python, "-m", PREPARATION, *arguments])


def preparation_script(options: Namespace, plan: ResourcePlan, program: list[str], run_dir: Path) -> str:
    """The batch script of the job that makes the tokens."""
    name = f"{plan.options.get('job-name') or run_dir.name}-prepare"
    own = dict(sbatch_option(text) for text in options.prepare_sbatch)
    if fixed := [option for option in own if option in FIXED]:
        raise RequestError(
            f"--prepare-sbatch {fixed[0]}: that job is one task on one node, its log in the run directory"
        )
    if options.wdir:
        own = {"chdir": os.path.abspath(options.wdir), **own}
    header = plan.preparation_options(name, log_pattern(run_dir, "%x-%j.log"), check_sbatch_options(own))
    return batch_script(header, site_setup(), preparation_command(program, run_dir), variables={})


def prepare_here(options: Namespace, program: list[str], run_dir: Path) -> None:
    """Make the tokens on this machine, which says itself why it cannot where it raises a `ClusterError`."""
    import subprocess

    sys.stdout.flush()
    command = shlex.split(preparation_command(program, run_dir))
    status = subprocess.run(command, cwd=options.wdir, env=forwarded_environment(options)).returncode
    if status:
        raise refused_by(status, f"the tokens were not made (exit status {status}): nothing was started")
