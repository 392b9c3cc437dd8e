"""The front end: from the login node to a queued job, by submitit; without Slurm, to ranks on this machine.

python -m cluster.submit --nodes 2 --gpus 8 -- --experiment-name a --max-steps 1000
python -m cluster.submit --nodes 2 --gpus 8 --program -- python my_script.py
"""

import json
import os
import shlex
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Unpack

from cluster import slurm
from cluster.allocation import Allocation
from cluster.command import add_project, launch_command
from cluster.config_file import add_config_options, resolve_arguments
from cluster.environment import mpirun_environment
from cluster.errors import REQUEST, ClusterError, LauncherError, RequestError
from cluster.granted import named_hosts, this_machine
from cluster.hostfile import hostfile_text
from cluster.keywords import SubmitOptions, check_keywords, command_words
from cluster.logs import tail
from cluster.machine import visible_gpus
from cluster.mpirun import OPEN_MPI_5, Mpirun, find_mpirun
from cluster.notice import read_webhook
from cluster.options import OptionParser, add_place_options, at_least, run, split_program
from cluster.plan import (
    DEFAULT_GPUS_PER_NODE,
    DEFAULT_NODES,
    ResourcePlan,
    after,
    batch_script,
    check_sbatch_options,
    log_pattern,
)
from cluster.private import check_private, make_private_directory, private
from cluster.program import resolve_program
from cluster.rundir import (
    Attempt,
    is_training,
    launcher_holds,
    name_run_directory,
    next_attempt,
    option_value,
    run_directory,
    unwritable,
)
from cluster.secret import check_secrets

if TYPE_CHECKING:
    import subprocess

    from cluster.run import Run

USAGE = "python -m cluster.submit [options] -- [arguments of training.train_llm]"
EPILOG = """\
examples:
  python -m cluster.submit --nodes 2 --gpus 8                        GPT-2 on alpaca, 16 ranks
  python -m cluster.submit --nodes 2 --gpus 8 --dry-run -- --lr 1e-4 show everything, submit nothing
  python -m cluster.submit --nodes 4 --program -- python my_script.py
  python -m cluster.submit --prepare-first --prepare-sbatch partition=cpu -- --dataset-name data.jsonl
  python -m cluster.submit --cluster local --nodes 2 --ranks-per-node 2 -- --preset demo

exit status: 0 submitted (with --wait: the job's own), 64 the request is wrong, 70 this place cannot do it"""

DEFAULT_EXPERIMENT = "gpt2_mpi"
LAUNCHER_LOG = "launcher.log"
"""In the run directory: what a launcher says that has no job and no terminal."""
TRAINER = "training.train_llm"
PREPARATION = "training.prepare"
SITE_SETUP = Path("sbatch/env.sh")
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
PREPARATION_FIXED = ("nodes", "ntasks", "ntasks-per-node", "output", "error", "array")


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
        return Run(queue(options, program, resolved).run_dir)
    run_dir, launch = prepare_launch(options, program, resolved)
    launcher = start_launcher(run_dir, launch)
    run = Run(run_dir)
    run.launcher = launcher
    return run


def main(arguments: list[str]) -> int:
    options, program, words = understand(arguments)
    if goes_to_slurm(options):
        return submit_to_slurm(options, program, words)
    if options.json:
        raise RequestError("--json tells of a job, and this run is none: python -m cluster status --json has it")
    if options.cluster == "auto" and not (options.hosts or options.hostfile):
        print("no sbatch here: running on this machine (--cluster local says so without this line)")
    return run_here(options, program, words)


class Asked(NamedTuple):
    """What a command line asks for. `words` are its own, with what a file says, to be repeated."""

    options: Namespace
    program: list[str]
    words: list[str]


def understand(given: Sequence[str]) -> Asked:
    """What a command line asks for. Raises `RequestError` where that cannot be."""
    command = parser()
    words, config = resolve_arguments(given, command)
    before, rest = split_program(words)
    options = command.parse_options(before)
    options.config = config
    if options.json and (options.follow or options.dry_run):
        raise RequestError("--json is one object: with --follow there is a log; what a dry run has is explain --json")
    program = [sys.executable, "-m", TRAINER, *rest] if not options.program else rest
    program = resolve_program(program, options.wdir or ".")
    if options.prepare_first and not is_trainer(program):
        raise RequestError(f"--prepare-first makes the tokens of {TRAINER}: leave it out for another program")
    if options.prepare_sbatch and not options.prepare_first:
        raise RequestError("--prepare-sbatch is for the job of --prepare-first: give that too")
    if options.notify:
        read_webhook(options.notify)  # it is wrong now, or never
    check_secrets(options.secret, options.forward, words, os.environ)
    return Asked(options, program, [*(word for word in before if word != "--json"), *words[len(before) :]])


def parser() -> OptionParser:
    options = OptionParser("python -m cluster.submit", USAGE, str(__doc__), EPILOG)
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


def run_here(options: Namespace, program: list[str], arguments: Sequence[str]) -> int:
    """The same launcher, in the foreground, on this machine or on the hosts given."""
    if ignored := without_meaning_here(options):
        print(f"note: without Slurm {', '.join(ignored)} has no meaning")
    if options.dry_run:
        run_dir = experiment_directory(options, program)
        if options.prepare_first:
            print(f"# first, here\n{preparation_command(program, run_dir)}\n")
        show_plan(options, here(options), program, run_dir)
        return 0
    _, launch = prepare_launch(options, program, arguments)
    from cluster.launch import main as launch_main

    return launch_main(launch)


def prepare_launch(options: Namespace, program: list[str], given: Sequence[str]) -> tuple[Path, list[str]]:
    """All that comes before the launcher: its run directory, with the request in it, and its arguments."""
    allocation = here(options)
    run_dir = experiment_directory(options, program)
    check_training(options, [name_run_directory(program, run_dir)], allocation.world_size)
    if options.prepare_first:
        prepare_here(options, program, run_dir)
    from cluster.request import record_request

    find_mpirun(options.mpirun, os.environ)  # before anything is written
    if not launcher_holds(run_dir):
        record_request(run_dir, given, None)
    place = [] if options.hosts or options.hostfile else ["--cluster", "local", "--nodes", str(options.nodes or 1)]
    ranks_per_node = options.ranks_per_node or options.gpus
    return run_dir, [*place, *launch_arguments(options, ranks_per_node, run_dir), "--", *program]


def start_launcher(run_dir: Path, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    """The launcher in a session of its own, which outlives this process; it has begun, or has ended already.

    Raises a `ClusterError` with its last words where it ended before an attempt.
    """
    import subprocess

    attempt = next_attempt(run_dir, None).path
    environ = dict(os.environ)
    add_project(environ)
    command = [sys.executable, "-u", "-m", "cluster.launch", *arguments]
    with open(run_dir / LAUNCHER_LOG, "a", opener=private) as log:
        launcher = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    while launcher.poll() is None and not (attempt / "plan.json").exists():
        time.sleep(0.05)
    if not attempt.exists():
        last = tail(run_dir / LAUNCHER_LOG).rpartition("\n")[2]
        raise refusal(launcher.returncode, last.removeprefix("error: "))
    return launcher


def without_meaning_here(options: Namespace) -> list[str]:
    """The options given that only sbatch could follow."""
    given = [f"--{name}" for name in SLURM_OPTIONS if getattr(options, name.replace("-", "_"))]
    return [*given, *(f"--{name}" for name in ("sbatch", "prepare-sbatch") if getattr(options, name.replace("-", "_")))]


def here(options: Namespace) -> Allocation:
    """The hosts given, or this machine's simulated nodes once it is sure that the GPUs asked for exist."""
    if options.hosts or options.hostfile:
        if options.nodes or options.gpus:
            raise RequestError("--hosts names the nodes and their ranks: leave out --nodes and --gpus")
        return named_hosts(options)
    gpus, nodes, present = options.gpus or 0, options.nodes or 1, len(visible_gpus(os.environ) or [])
    if gpus * nodes > present:
        raise RequestError(
            f"--nodes {nodes} --gpus {gpus} asks for {gpus * nodes} GPUs, this machine has {present}: "
            "use --ranks-per-node N for ranks without GPUs of their own"
        )
    return this_machine(nodes, options.ranks_per_node or gpus or None)


class Queued(NamedTuple):
    """A job that waits in the queue, and the one that makes its data, where there is one."""

    plan: ResourcePlan
    run_dir: Path
    job_id: str
    preparation_id: str | None

    @property
    def log(self) -> Path:
        return self.run_dir / f"{self.plan.options.get('job-name') or self.run_dir.name}-{self.job_id}.log"


def submit_to_slurm(options: Namespace, program: list[str], given: Sequence[str]) -> int:
    """Queue it, and say what to do next; or show what would be queued."""
    if options.dry_run:
        plan, run_dir = request(options), experiment_directory(options, program)
        if options.prepare_first:
            print(preparation_script(options, plan, program, run_dir, site_setup()))
        print(training_script(plan, run_dir, "JOB_ID_OF_THE_FIRST" if options.prepare_first else None))
        show_plan(options, plan.expected_allocation(), program, run_dir)
        return 0
    job = queue(options, program, given)
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
        return 0
    from cluster.wait import wait_for_job

    return wait_for_job(job.job_id, job.log, options.follow)


def queue(options: Namespace, program: list[str], given: Sequence[str]) -> Queued:
    """Check all that can be checked here, and submit. Raises `RequestError` where it is refused: nothing is left."""
    plan, run_dir = request(options), experiment_directory(options, program)
    before = preparation_script(options, plan, program, run_dir, site_setup()) if options.prepare_first else None
    check_training(options, [name_run_directory(program, run_dir)], plan.expected_allocation().world_size)
    for each in filter(None, [before, training_script(plan, run_dir)]):
        check_with_slurm(each)
    arguments = [*launch_arguments(options, options.ranks_per_node, run_dir), "--", *program]
    with made(run_dir), queued(before, forwarded_environment(options)) as preparation_id:
        job_id = sbatch_by_submitit(training_script(plan, run_dir, preparation_id), run_dir, arguments)
    from cluster.request import record_request

    record_request(run_dir, given, job_id)
    return Queued(plan, run_dir, job_id, preparation_id)


def submitted_text(submitted: Mapping[str, object]) -> str:
    """What was submitted, for people."""
    lines = [f"plan           {submitted['plan']}"]
    if submitted["prepare_job_id"]:
        lines.append(f"prepare        {submitted['prepare_job_id']}")
    lines += [f"job            {submitted['job_id']}", f"run directory  {submitted['run_dir']}"]
    lines.append(f"next           tail -F {shlex.quote(str(submitted['log']))}")
    return "\n".join(lines)


def site_setup() -> Path | None:
    return SITE_SETUP.absolute() if SITE_SETUP.exists() else None


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


def preparation_command(program: list[str], run_dir: Path) -> str:
    """The trainer's own arguments, for the program that makes the tokens ahead."""
    python, _, _, *arguments = name_run_directory(program, run_dir)
    return shlex.join([python, "-m", PREPARATION, *arguments])


def preparation_script(
    options: Namespace, plan: ResourcePlan, program: list[str], run_dir: Path, setup: Path | None
) -> str:
    """The batch script of the job that makes the tokens."""
    name = f"{plan.options.get('job-name') or run_dir.name}-prepare"
    own = dict(sbatch_option(text) for text in options.prepare_sbatch)
    if fixed := [option for option in own if option in PREPARATION_FIXED]:
        raise RequestError(
            f"--prepare-sbatch {fixed[0]}: that job is one task on one node, its log in the run directory"
        )
    if options.wdir:
        own = {"chdir": os.path.abspath(options.wdir), **own}
    header = plan.preparation_options(name, log_pattern(run_dir, "%x-%j.log"), check_sbatch_options(own))
    return batch_script(header, setup, preparation_command(program, run_dir), variables={})


def prepare_here(options: Namespace, program: list[str], run_dir: Path) -> None:
    """Make the tokens on this machine, which says itself why it cannot where it raises a `ClusterError`."""
    import subprocess

    sys.stdout.flush()
    command = shlex.split(preparation_command(program, run_dir))
    status = subprocess.run(command, cwd=options.wdir, env=forwarded_environment(options)).returncode
    if status:
        raise refusal(status, f"the tokens were not made (exit status {status}): nothing was started")


def forwarded_environment(options: Namespace) -> dict[str, str]:
    """This environment with the values of ``-x NAME=VALUE``: what the ranks are given counts for the data too."""
    environ = {**os.environ, **{name: value for name, value in options.forward if value is not None}}
    add_project(environ)
    return environ


def sbatch_option(text: str) -> tuple[str, str]:
    """``NAME=VALUE`` of ``--sbatch`` and ``--prepare-sbatch``."""
    name, _, value = text.removeprefix("--").partition("=")
    return name, value


def request(options: Namespace) -> ResourcePlan:
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
    job_name = options.job_name or (default_experiment(program) if is_training(program) else None)
    run_dir = run_directory(program, options.experiment_name, options.output_dir, job_name)
    try:
        check_private(run_dir)
    except OSError as error:
        raise unwritable(run_dir, error) from error
    parent = next(directory for directory in (run_dir, *run_dir.parents) if os.path.exists(directory))
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise RequestError(f"the run directory {run_dir} cannot be written: choose another --output-dir")
    return run_dir


def default_experiment(program: list[str]) -> str:
    """The preset's name, so that a trial run does not take the place of the real one."""
    return option_value(program, "--preset") or DEFAULT_EXPERIMENT


def launch_arguments(options: Namespace, ranks_per_node: int | None, run_dir: Path) -> list[str]:
    """The launcher's options in the job: what was said here about ranks, and the run directory in full."""
    arguments = ["--experiment-name", run_dir.name, "--output-dir", str(run_dir.parent)]
    for name, value in (
        ("--ranks-per-node", ranks_per_node),
        ("--hosts", options.hosts),
        ("--hostfile", options.hostfile),
        ("--mpirun", options.mpirun),
        ("--bind-to", options.bind_to),
        ("--stage-env", options.stage_env),
        ("--wdir", options.wdir),
        ("--output-filename", options.output_filename),
        ("--nic", options.nic),
        ("--ssh", options.ssh),
        ("--restarts", options.restarts),
        ("--spare-nodes", options.spare_nodes or None),
        ("--hang-timeout", options.hang_timeout),
        ("--notify", options.notify and os.path.abspath(options.notify)),
    ):
        if value is not None:
            arguments += [name, str(value)]
    for name, value in options.forward:
        arguments += ["-x", name if value is None else f"{name}={value}"]
    arguments += [word for name in options.secret for word in ("--secret", name)]
    arguments += [f"--mpirun-arg={value}" for value in options.mpirun_arg]
    return arguments


def is_trainer(program: Sequence[str]) -> bool:
    """Whether the program is ``python -m training.train_llm``."""
    return is_training(program) and program[2] == TRAINER


def check_training(options: Namespace, programs: Sequence[Sequence[str]], ranks: int) -> None:
    """Let the trainer check its own arguments, of several runs at once, before anything is queued.

    In a process of its own, because this one must not import torch, transformers or datasets.
    Raises `RequestError` with the trainer's words where some are wrong.
    """
    if options.no_check or not is_trainer(programs[0]):
        return
    import subprocess

    # The file once more, below what was made of it: its keys are refused by their names in it.
    config = ["--config", options.config] if options.config else []
    requests = [word for program in programs for word in ("--", *program[3:])][1:]
    command = [programs[0][0], "-m", "training.check", "--ranks", str(ranks), *config, *requests]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        words = done.stderr.strip().removeprefix("error: ")
        raise refusal(done.returncode, words or f"training.check ended with status {done.returncode}")
    sys.stderr.write(done.stderr)


def refusal(status: int, words: str) -> ClusterError:
    """What another process said as it ended with that status: the request is wrong, or this place."""
    return RequestError(words) if status == REQUEST else LauncherError(words)


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
    waiting = False  # not after a time-out: the request may have been taken, and a second one would be another job
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

    from cluster.launch import submitit_job

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


class PlannedLaunch(NamedTuple):
    """What the launcher would do: with which mpirun, by which command, in which environment of mpirun."""

    mpirun: Mpirun
    attempt: Attempt
    command: list[str]
    environ: dict[str, str]


def planned_launch(
    options: Namespace, allocation: Allocation, program: list[str], run_dir: Path, mpirun: Mpirun
) -> PlannedLaunch:
    """The launch of the run's next attempt. Nothing is written."""
    attempt = next_attempt(run_dir, options.output_filename)
    environ = mpirun_environment(os.environ, allocation, options.nic, mpirun.has_daemon)
    command = launch_command(options, mpirun, allocation, name_run_directory(program, run_dir), attempt, environ)
    return PlannedLaunch(mpirun, attempt, command, environ)


def show_plan(options: Namespace, allocation: Allocation, program: list[str], run_dir: Path) -> None:
    """Hostfile, mpirun command and rank table that the launcher would use."""
    try:
        mpirun = find_mpirun(options.mpirun, os.environ)
    except LauncherError:
        print("# no mpirun on this machine: shown as for Open MPI 5")
        mpirun = Mpirun("mpirun", OPEN_MPI_5)
    planned = planned_launch(options, allocation, program, run_dir, mpirun)
    print(f"# plan: {allocation.summary()}")
    print(f"# hostfile\n{hostfile_text(allocation, mpirun.dialect)}")
    print(f"# {mpirun.dialect.name}\n{shlex.join(planned.command)}\n")
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
