"""The run directory: its name, its layout, and the attempts within it.

    outputs/<experiment>/            0700
      run.json                       attempts and their verdicts
      events.jsonl                   what happened, one line each (cluster.events)
      request.json                   the command that asked for the run (cluster.request_file)
      launcher.lock                  held while a launcher works here
      <name>-<job id>.log            the job's log, by cluster.submit; the templates write theirs where you submit
      launcher.log                   the launcher's words, where Python's submit() started it without Slurm
      submitit/                      what submitit stores, by cluster.submit
      attempt-0001/                  one launch
        plan.json                    hosts [name, ranks, GPUs, CPUs], MASTER_ADDR and MASTER_PORT, tokens
        hostfile                     as given to mpirun
        mpirun.txt                   mpirun's command line
        mpirun.log                   what mpirun itself printed
        ranks.jsonl                  how each rank began and ended, see cluster.records
        stacks.txt                   of every rank, where the attempt hung
        errors/rank-3.json           TORCHELASTIC_ERROR_FILE
        logs/rank-3.log              everything the rank printed

The program's own files (metrics, checkpoints) lie beside the attempts.
"""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.errors import ClusterError, LauncherError, RequestError
from cluster.private import make_private_directory
from cluster.program import split_flags
from cluster.trainer import naming_settings

DEFAULT_OUTPUT_DIR = "outputs"

_ATTEMPT = re.compile(r"attempt-(\d+)")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,127}", re.ASCII)


def check_experiment_name(name: str) -> str:
    """The name itself, if it can be a directory's name on every file system and a Slurm job's name."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise RequestError(
            f"experiment name {name!r}: wanted 1 to 128 letters, digits, or _ . + = @ -, "
            "beginning with a letter, digit or _, without '..'"
        )
    return name


def run_directory(
    program: Sequence[str], experiment: str | None, output_dir: str | None, job_name: str | None, wdir: str = "."
) -> Path:
    """The run directory of a launch, absolute. `experiment` and `output_dir` are the launcher's own options.

    Our own trainer's arguments are read for the same two facts, so that both write in one place: its command line,
    then the TOML file of its `--config`, which it reads in `wdir`. Without either the job's name is taken, else the
    program's.

    Raises `RequestError` where launcher and trainer are told different names.
    """
    settings = naming_settings(program, wdir)
    experiment = _agreed("--experiment-name", experiment, settings.get("experiment_name"))
    output_dir = _agreed("--output-dir", output_dir, settings.get("output_dir"))
    name = check_experiment_name(experiment or job_name or _program_stem(program))
    return Path(output_dir or DEFAULT_OUTPUT_DIR).absolute() / name


class Attempt(NamedTuple):
    """One launch within a run: its number, and the directories that it may write."""

    number: int
    run_dir: Path
    path: Path
    log_dir: Path

    def log_of(self, rank: int) -> Path:
        return rank_log(self.log_dir, rank)

    @property
    def mpirun_log(self) -> Path:
        return self.path / "mpirun.log"

    @property
    def records(self) -> Path:
        return self.path / "ranks.jsonl"

    @property
    def stacks(self) -> Path:
        return self.path / "stacks.txt"

    @property
    def command(self) -> Path:
        return self.path / "mpirun.txt"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def hostfile(self) -> Path:
        return self.path / "hostfile"


def attempt_of(run_dir: Path, number: int, log_dir: str | None = None) -> Attempt:
    """The attempt of that number, made or not; `log_dir` is where ``--output-filename`` wants all logs."""
    path = run_dir / f"attempt-{number:04d}"
    return Attempt(number, run_dir, path, Path(log_dir).absolute() / path.name if log_dir else path / "logs")


def newest_attempt(run_dir: Path) -> int:
    """Its number, 0 before the first."""
    names = (_ATTEMPT.fullmatch(path.name) for path in run_dir.glob("attempt-*"))
    return max((int(name[1]) for name in names if name), default=0)


def next_attempt(run_dir: Path, log_dir: str | None) -> Attempt:
    """The attempt that a launch now would be. Nothing is written."""
    return attempt_of(run_dir, newest_attempt(run_dir) + 1, log_dir)


def rank_log(log_dir: Path, rank: int) -> Path:
    """Where all goes that a rank prints."""
    return log_dir / f"rank-{rank}.log"


def create_directories(attempt: Attempt) -> None:
    """Make the attempt's directories (0700). Raises `RequestError` where they cannot be written."""
    try:
        for directory in (attempt.path, attempt.path / "errors"):
            directory.mkdir(mode=0o700)
        make_private_directory(attempt.log_dir)
    except OSError as error:
        raise unwritable(attempt.run_dir, error) from error


def unwritable(run_dir: Path, error: OSError) -> ClusterError:
    """The user's fault where the place is wrong; else the place's, where it is full or broken."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE):
        return LauncherError(f"the run directory {run_dir} cannot be written ({error.strerror}): df -h {run_dir}")
    return RequestError(
        f"the run directory {run_dir} cannot be written ({error.strerror}): choose another --output-dir"
    )


def _agreed(option: str, launcher: str | None, trainer: str | None) -> str | None:
    if launcher and trainer and os.path.abspath(launcher) != os.path.abspath(trainer):
        raise RequestError(f"{option} is {launcher} for the launcher and {trainer} for the trainer: give it once")
    return launcher or trainer


def _program_stem(program: Sequence[str]) -> str:
    for word in split_flags(program[1:])[1] if os.path.basename(program[0]).startswith("python") else program:
        if not word.startswith("-"):
            return re.sub(r"[^A-Za-z0-9_]", "_", Path(word).stem)
    return "program"
