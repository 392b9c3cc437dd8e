"""The front end: from the login node to a queued job, or without Slurm to ranks on this machine; from Python too."""

import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Unpack

from cluster.command import launch_command, launch_environment
from cluster.errors import COMPLETE, LauncherError, RequestError
from cluster.here import allocation_here, prepare_launch, run_here, say_what_is_ignored, start_launcher
from cluster.hostfile import hostfile_text
from cluster.keywords import SubmitOptions, check_keywords, command_words
from cluster.mpirun import OPEN_MPI_5, Mpirun, find_mpirun
from cluster.options import run
from cluster.preparation import preparation_command, preparation_script
from cluster.request import experiment_directory, goes_to_slurm, parser, resource_plan, understand
from cluster.rundir import next_attempt
from cluster.sbatch import queue_job, training_script
from cluster.trainer import name_run_directory

if TYPE_CHECKING:
    from cluster.run import Run


def submit(
    arguments: Sequence[str] = (), *, program: Sequence[str] | None = None, **options: Unpack[SubmitOptions]
) -> "Run":
    """Queue a training, or start it on this machine where there is no Slurm, and return at once.

    Args:
        arguments: of `training.train_llm`, such as ``["--experiment-name", "a"]``.
        program: another program with its arguments, such as ``["python", "my_script.py"]``.
        **options: as on the command line, see `SubmitOptions`.

    Raises:
        RequestError: the request is wrong; nothing was written.
        LauncherError: this place cannot carry it out.
    """
    if arguments and program is not None:
        raise RequestError("arguments are those of training.train_llm: give the program's own in program")
    check_keywords(options)
    words = [*command_words(parser(), options), *(["--program"] if program is not None else [])]
    return submit_words([*words, "--", *(arguments if program is None else program)])


def submit_words(words: Sequence[str]) -> "Run":
    """The same for a command line as `main` takes it; what it says of waiting has no meaning here."""
    from cluster.run import Run

    options, program, resolved = understand(words)
    if goes_to_slurm(options):
        return Run(queue_job(options, program, resolved).run_dir)
    run_dir, launch = prepare_launch(options, program, resolved)
    launcher = start_launcher(run_dir, launch)
    run = Run(run_dir)
    run.launcher = launcher
    return run


def main(arguments: list[str]) -> int:
    options, program, words = understand(arguments)
    in_slurm = goes_to_slurm(options)
    if options.json and not in_slurm:
        raise RequestError("--json tells of a job, and this run is none: python -m cluster status --json has it")
    if options.cluster == "auto" and not (in_slurm or options.hosts or options.hostfile):
        print("no sbatch here: running on this machine (--cluster local says so without this line)")
    if options.dry_run:
        show(options, program, in_slurm)
        return COMPLETE
    return submit_to_slurm(options, program, words) if in_slurm else run_here(options, program, words)


def submit_to_slurm(options: Namespace, program: list[str], given: Sequence[str]) -> int:
    """Queue it, and say what to do next; with ``--wait``, the job's own status."""
    job = queue_job(options, program, given)
    submitted = {
        "experiment": job.run_dir.name,
        "run_dir": str(job.run_dir),
        "job_id": job.job_id,
        "prepare_job_id": job.preparation_id,
        "plan": job.plan.expected_allocation().summary(),
        "ranks": job.plan.expected_allocation().world_size,
        "log": str(job.log),
    }
    print(json.dumps(submitted, indent=1) if options.json else submitted_text(submitted), flush=True)
    if not (options.wait or options.follow):
        return COMPLETE
    from cluster.wait import wait_for_job

    return wait_for_job(job.job_id, job.log, options.follow)


def submitted_text(submitted: Mapping[str, object]) -> str:
    """What was submitted, for people."""
    lines = [f"plan           {submitted['plan']}"]
    if submitted["prepare_job_id"]:
        lines.append(f"prepare        {submitted['prepare_job_id']}")
    lines += [f"job            {submitted['job_id']}", f"run directory  {submitted['run_dir']}"]
    lines.append(f"next           tail -F {shlex.quote(str(submitted['log']))}")
    return "\n".join(lines)


def show(options: Namespace, program: list[str], in_slurm: bool) -> None:
    """A dry run: batch scripts, then hostfile, mpirun's command and rank table that the launcher would use."""
    run_dir = experiment_directory(options, program)
    if in_slurm:
        plan = resource_plan(options)
        allocation = plan.expected_allocation()
        if options.prepare_first:
            print(preparation_script(options, plan, program, run_dir))
        print(training_script(plan, run_dir, "JOB_ID_OF_THE_FIRST" if options.prepare_first else None))
    else:
        say_what_is_ignored(options)
        allocation = allocation_here(options)
        if options.prepare_first:
            print(f"# first, here\n{preparation_command(program, run_dir)}\n")
    try:
        mpirun = find_mpirun(options.mpirun, os.environ)
    except LauncherError:
        print("# no mpirun on this machine: shown as for Open MPI 5")
        mpirun = Mpirun("mpirun", OPEN_MPI_5)
    attempt = next_attempt(run_dir, options.output_filename)
    environ = launch_environment(options, mpirun, allocation)
    program = name_run_directory(program, run_dir)
    command = launch_command(options, mpirun, allocation, program, attempt, environ)
    print(f"# plan: {allocation.summary()}")
    print(f"# hostfile\n{hostfile_text(allocation, mpirun.dialect)}")
    print(f"# {mpirun.dialect.name}\n{shlex.join(command)}\n")
    print(*allocation.table(), sep="\n")


class CallableModule(ModuleType):
    """``from cluster import submit`` gives this module, as it bears that name, and ``submit(…)`` calls the function.

    By what the language reference calls "Customizing module attribute access": whatever was imported first.
    """

    def __call__(
        self, arguments: Sequence[str] = (), *, program: Sequence[str] | None = None, **options: Unpack[SubmitOptions]
    ) -> "Run":
        return submit(arguments, program=program, **options)


sys.modules[__name__].__class__ = CallableModule

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
