"""With Slurm: the batch script of the training, checked by sbatch itself, and queued by submitit."""

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cluster import slurm
from cluster.errors import LauncherError, RequestError
from cluster.plan import ResourcePlan, after, batch_script, log_pattern
from cluster.preparation import preparation_script
from cluster.private import make_private_directory
from cluster.request import (
    check_training,
    experiment_directory,
    forwarded_environment,
    launch_arguments,
    resource_plan,
    site_setup,
)
from cluster.trainer import name_run_directory


class Queued(NamedTuple):
    """A job that waits in the queue, and the one that makes its data, where there is one."""

    plan: ResourcePlan
    run_dir: Path
    job_id: str
    preparation_id: str | None

    @property
    def log(self) -> Path:
        return self.run_dir / f"{self.plan.options.get('job-name') or self.run_dir.name}-{self.job_id}.log"


def queue_job(options: Namespace, program: list[str], given: Sequence[str]) -> Queued:
    """Check all that can be checked here, and submit. Raises `RequestError` where it is refused: nothing is left."""
    plan, run_dir = resource_plan(options), experiment_directory(options, program)
    before = preparation_script(options, plan, program, run_dir) if options.prepare_first else None
    check_training(options, [name_run_directory(program, run_dir)], plan.expected_allocation().world_size)
    for each in filter(None, [before, training_script(plan, run_dir)]):
        check_with_slurm(each)
    arguments = [*launch_arguments(options, run_dir), "--", *program]
    with made(run_dir), queued(before, forwarded_environment(options)) as preparation_id:
        job_id = sbatch_by_submitit(training_script(plan, run_dir, preparation_id), run_dir, arguments)
    from cluster.request_file import record_request

    record_request(run_dir, given, job_id)
    return Queued(plan, run_dir, job_id, preparation_id)


def training_script(plan: ResourcePlan, run_dir: Path, waits_for: str | None = None) -> str:
    """The batch script of the training, which may wait for another job."""
    options = {"job-name": run_dir.name, **plan.sbatch_options(log_pattern(run_dir, "%x-%j.log"))}
    waiting = options if waits_for is None else after(waits_for, options)
    return batch_script(waiting, site_setup(), submitit_command(run_dir))


@contextmanager
def made(run_dir: Path) -> Iterator[None]:
    """The run directory is there; after an error, what was made and holds nothing is taken away again."""
    new = [directory for directory in (run_dir, *run_dir.parents) if not directory.exists()]
    make_private_directory(run_dir)
    try:
        yield
    except BaseException:
        for directory in new:
            if not any(directory.iterdir()):
                directory.rmdir()
        raise


@contextmanager
def queued(script: str | None, environ: dict[str, str]) -> Iterator[str | None]:
    """The id of the job that goes before, where there is one; after an error it is taken out of the queue again."""
    if script is None:
        yield None
        return
    job_id = ""

    def submit() -> str | None:
        nonlocal job_id
        job_id, words = slurm.submit(script, environ)
        return words

    if words := patiently(submit):
        raise RequestError(f"sbatch refused: {words}")
    try:
        yield job_id
    except BaseException:
        slurm.cancel(job_id)
        raise


def check_with_slurm(script: str) -> None:
    """Raise `RequestError` with sbatch's own words for a request that Slurm could never start."""
    words = patiently(lambda: slurm.refusal(script))
    if words and slurm.nodes_out_of_service():
        print(
            f"warning: sbatch --test-only says: {words} (some nodes are down or drained: queued all the same)",
            file=sys.stderr,
        )
    elif words:
        raise RequestError(f"sbatch refused: {words}")


def patiently(ask: Callable[[], str | None]) -> str | None:
    """What Slurm has against it, None where nothing; a controller that is down for a while is waited for.

    Raises `LauncherError` where it stays down: that is no fault of the request.
    """
    deadline = time.monotonic() + slurm.CONTROLLER_BACK_WITHIN
    waiting = False
    # Not again after a time-out: the request may have been taken, and a second one would be another job.
    while (words := ask()) and slurm.is_down(words):
        if time.monotonic() > deadline:
            raise LauncherError(f"Slurm's controller does not answer ({words}): try again when scontrol ping says UP")
        if not waiting:
            print(f"waiting for Slurm's controller ({words})", file=sys.stderr)
            waiting = True
        time.sleep(slurm.ASK_AGAIN_EVERY)
    return words


def submitit_command(run_dir: Path) -> str:
    return shlex.join([sys.executable, "-u", "-m", "cluster.submitted", str(run_dir / "submitit")])


def sbatch_by_submitit(script: str, run_dir: Path, arguments: list[str]) -> str:
    """Submit; the job's id. Where sbatch refuses, its own words are the error and nothing stays behind."""
    import submitit
    from submitit.core.utils import FailedJobError

    from cluster.submitted import submitit_job

    class Executor(submitit.SlurmExecutor):
        """submitit's executor with our batch script: what the dry run prints is what is submitted."""

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return script

    folder = run_dir / "submitit"
    make_private_directory(folder)
    before = set(folder.glob("*")) | set(folder.glob(".*"))
    job_id = ""

    def submit() -> str | None:
        nonlocal job_id
        try:
            job_id = str(Executor(folder).submit(submitit_job, arguments).job_id)
        except FailedJobError as error:
            for path in (set(folder.glob("*")) | set(folder.glob(".*"))) - before:
                path.unlink()
            return " ".join(str(error).split())
        for path in set(folder.iterdir()) - before:
            path.chmod(0o600)
        return None

    words = patiently(submit)
    if words is not None:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise RequestError(f"sbatch refused: {words}")
    return job_id
