"""What is asked for: the command line of submit, understood, and what follows from it whoever carries it out."""

import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.config_file import add_config_options, read_command_line
from cluster.environment import with_project
from cluster.errors import LauncherError, RequestError, refused_by
from cluster.keywords import command_words
from cluster.notice import read_webhook
from cluster.options import OptionParser, add_place_options, at_least
from cluster.plan import DEFAULT_GPUS_PER_NODE, DEFAULT_NODES, ResourcePlan, check_sbatch_options
from cluster.private import check_private
from cluster.program import resolve_program
from cluster.rundir import run_directory, unwritable
from cluster.trainer import TRAINER, default_experiment, is_trainer

USAGE = "python -m cluster.submit [options] -- [arguments of training.train_llm]"
DESCRIPTION = """\
The front end: from the login node to a queued job, by submitit; without Slurm, to ranks on this machine.

python -m cluster.submit --nodes 2 --gpus 8 -- --experiment-name a --max-steps 1000
python -m cluster.submit --nodes 2 --gpus 8 --program -- python my_script.py
"""
EPILOG = """\
examples:
  python -m cluster.submit --nodes 2 --gpus 8                        GPT-2 on alpaca, 16 ranks
  python -m cluster.submit --nodes 2 --gpus 8 --dry-run -- --lr 1e-4 show everything, submit nothing
  python -m cluster.submit --nodes 4 --program -- python my_script.py
  python -m cluster.submit --prepare-first --prepare-sbatch partition=cpu -- --dataset-name data.jsonl
  python -m cluster.submit --cluster local --nodes 2 --ranks-per-node 2 -- --preset demo

exit status: 0 submitted (with --wait: the job's own), 64 the request is wrong, 70 this place cannot do it"""

SITE_SETUP = Path("sbatch/env.sh")
"""The one place for a site: sourced in every batch body."""
SLURM_OPTIONS = {
    "partition": "NAME",
    "account": "NAME",
    "qos": "NAME",
    "time": "TIME",
    "mem": "SIZE",
    "cpus-per-task": "N",
    "constraint": "FEATURES",
    "exclude": "HOSTS",
    "nodelist": "HOSTS",
    "job-name": "NAME",
    "mail-type": "EVENTS",
    "mail-user": "ADDRESS",
}
"""sbatch's options that submit has too, and what they take."""
OWNED_OPTIONS = {
    "nodes": "--nodes",
    "gpus": "--gpus (on each node)",
    "gpus-per-node": "--gpus (on each node)",
    "gpus-per-task": "--gpus (on each node)",
    "ntasks": "--nodes and --ranks-per-node",
    "ntasks-per-node": "--ranks-per-node",
    "output": "--output-dir",
    "error": "--output-dir",
    "array": "python -m cluster sweep, or a template: sbatch --array=0-3 sbatch/gpt2_mpi.sh",
}
"""Those that the plan itself sets, and by what to ask for them."""


class Asked(NamedTuple):
    """What a command line asks for. `words` are its own, with what a file says, to be repeated."""

    options: Namespace
    program: list[str]
    words: list[str]


def understand(given: Sequence[str]) -> Asked:
    """What a command line of submit asks for. Raises `RequestError` where that cannot be."""
    options, rest, words = read_command_line(parser(), given)
    if options.json and (options.follow or options.dry_run):
        raise RequestError("--json is one object: with --follow there is a log; what a dry run has is explain --json")
    program = program_asked_for(options, rest)
    if options.prepare_first and not is_trainer(program):
        raise RequestError(f"--prepare-first makes the tokens of {TRAINER}: leave it out for another program")
    if options.prepare_sbatch and not options.prepare_first:
        raise RequestError("--prepare-sbatch is for the job of --prepare-first: give that too")
    if options.notify:
        read_webhook(options.notify)  # it is wrong now, or never
    before = words[: words.index("--")] if "--" in words else words
    return Asked(options, program, [*(word for word in before if word != "--json"), *words[len(before) :]])


def program_asked_for(options: Namespace, rest: list[str]) -> list[str]:
    """What stands after ``--``: the program itself with ``--program``, else the arguments of our trainer."""
    return resolve_program(rest if options.program else [sys.executable, "-m", TRAINER, *rest], options.wdir or ".")


def parser() -> OptionParser:
    options = OptionParser("python -m cluster.submit", USAGE, DESCRIPTION, EPILOG)
    options.add_argument(
        "--gpus",
        "--gpus-per-node",
        dest="gpus",
        type=at_least(0),
        metavar="N",
        help=f"GPUs on each node (default {DEFAULT_GPUS_PER_NODE}; sbatch's own --gpus is the job's total)",
    )
    options.add_argument("--program", action="store_true", help="what follows -- is the program itself")
    options.add_argument("--dry-run", action="store_true", help="print what would be submitted, submit nothing")
    options.add_argument("--wait", action="store_true", help="wait for the end, return the job's exit status")
    options.add_argument("--follow", action="store_true", help="like --wait, and show the log")
    options.add_argument("--json", action="store_true", help="one JSON object, instead of lines for people")
    options.add_argument("--no-check", action="store_true", help="submit without checking the trainer's arguments here")
    options.add_argument(
        "--prepare-first",
        action="store_true",
        help="make the data's tokens in a job of its own, on one node without GPUs, for which the training waits",
    )
    add_config_options(options)
    add_place_options(options)
    sbatch = options.add_argument_group("Slurm (sbatch's own options)")
    for name, metavar in SLURM_OPTIONS.items():
        sbatch.add_argument(f"--{name}", metavar=metavar, type=at_least(1) if metavar == "N" else str)
    sbatch.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="any other sbatch option, such as --sbatch reservation=x (repeat it)",
    )
    sbatch.add_argument(
        "--prepare-sbatch",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="an sbatch option of the job of --prepare-first alone, such as --prepare-sbatch partition=cpu (repeat it)",
    )
    return options


def goes_to_slurm(options: Namespace) -> bool:
    """Slurm where it is asked for, or where `auto` finds an sbatch."""
    if options.hosts or options.hostfile or options.cluster == "local":
        return False
    if options.cluster == "slurm" and not shutil.which("sbatch"):
        raise LauncherError("--cluster slurm, but there is no sbatch on PATH: run this on a login node of the cluster")
    return shutil.which("sbatch") is not None


def forwarded_environment(options: Namespace) -> dict[str, str]:
    """This environment with the values of ``-x NAME=VALUE``: what the ranks are given counts for the data too."""
    return with_project({**os.environ, **{name: value for name, value in options.forward if value is not None}})


def site_setup() -> Path | None:
    """The site's set-up file, absolute, where there is one here."""
    return SITE_SETUP.absolute() if SITE_SETUP.exists() else None


def sbatch_option(text: str) -> tuple[str, str]:
    """``NAME=VALUE`` of ``--sbatch`` and ``--prepare-sbatch``."""
    name, _, value = text.removeprefix("--").partition("=")
    return name, value


def resource_plan(options: Namespace) -> ResourcePlan:
    """The request in the user's words. Ranks without GPUs are asked for by --ranks-per-node alone."""
    given = {name: str(value) for name in SLURM_OPTIONS if (value := getattr(options, name.replace("-", "_")))}
    for option in options.sbatch:
        name, value = sbatch_option(option)
        if name in OWNED_OPTIONS:
            raise RequestError(f"--sbatch {name}: use {OWNED_OPTIONS[name]}, the plan is made from it")
        given[name] = value
    gpus = options.gpus
    if gpus is None:
        gpus = 0 if options.ranks_per_node else DEFAULT_GPUS_PER_NODE
    return ResourcePlan(
        options.nodes or DEFAULT_NODES, gpus, options.ranks_per_node, check_sbatch_options(given), options.spare_nodes
    )


def experiment_directory(options: Namespace, program: list[str]) -> Path:
    """Where the run will write, checked now rather than after hours in the queue."""
    job_name = options.job_name or default_experiment(program)
    run_dir = run_directory(program, options.experiment_name, options.output_dir, job_name, options.wdir or ".")
    try:
        check_private(run_dir)
    except OSError as error:
        raise unwritable(run_dir, error) from error
    parent = next(directory for directory in (run_dir, *run_dir.parents) if os.path.exists(directory))
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise RequestError(f"the run directory {run_dir} cannot be written: choose another --output-dir")
    return run_dir


def launch_arguments(options: Namespace, run_dir: Path, **place: str | int | None) -> list[str]:
    """The launcher's options: what was said here, with the run directory in full, and `place` instead of nodes."""
    launcher = OptionParser("python -m cluster.launch", "", "")
    add_place_options(launcher)
    own = {
        "cluster": None,
        "nodes": None,
        **place,
        "experiment_name": run_dir.name,
        "output_dir": str(run_dir.parent),
        "notify": options.notify and os.path.abspath(options.notify),
    }
    return command_words(launcher, {**vars(options), **own})


def check_training(options: Namespace, programs: Sequence[Sequence[str]], ranks: int) -> None:
    """Let the trainer check its own arguments, of several runs at once, before anything is queued.

    In a process of its own, because this one must not import torch, transformers or datasets; in the directory and
    with the environment of the ranks. Nothing is checked with ``--no-check``, nor of another program. Raises
    `RequestError` with the trainer's words where some are wrong.
    """
    if options.no_check or not is_trainer(programs[0]):
        return
    import subprocess

    requests = [word for program in programs for word in ("--", *program[3:])][1:]
    # The file once more, below what was made of it: its keys are refused by their names in it.
    file = os.path.abspath(options.config) if options.config and options.wdir else options.config
    config = ["--config", file] if file else []
    command = [programs[0][0], "-m", "training.check", "--ranks", str(ranks), *config, *requests]
    environ = forwarded_environment(options)
    done = subprocess.run(command, cwd=options.wdir, env=environ, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        words = done.stderr.strip().removeprefix("error: ")
        raise refused_by(done.returncode, words or f"training.check ended with status {done.returncode}")
    sys.stderr.write(done.stderr)
