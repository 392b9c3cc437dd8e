"""The program's Python environment on the disk of every node: a file server would be asked for it by every rank.

    python -m cluster.stage_env look|unpack|clean FOLDER ENVIRONMENT [SHA256]     on each node, by srun

The launcher packs the environment once, Slurm's sbcast hands the archive from node to node, each node unpacks it, and
the program is run by the interpreter there. Its folder belongs to the job: a second attempt finds it, the job's end
removes it.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster import slurm
from cluster.allocation import Allocation
from cluster.environment import with_project
from cluster.node_local import make_private, own_folder
from cluster.terminal import say

WITHIN = 900.0
"""Seconds for each of the three steps: pack, send, unpack."""
CLEAN_WITHIN = 20.0
THERE, NEEDED, IMPOSSIBLE = 0, 3, 4
"""Exit statuses of a node: it has the environment, it needs it, it cannot have it."""


class CannotStage(Exception):
    """Why the environment is used where it lies."""


@contextmanager
def staged(
    folder: str | None, program: Sequence[str], granted: Allocation, stopped: Callable[[], bool]
) -> Iterator[list[str]]:
    """The program to run: by the interpreter of the copy, where `folder` asks for one and it can be made.

    Where it cannot, one line says why, and the program is run as it was. ``stopped()``: give up now.
    """
    if folder is None:
        yield list(program)
        return
    place = own_folder(folder) / f"job-{os.environ.get('SLURM_JOB_ID')}"
    begun = False
    try:
        environment = environment_to_stage(program, granted)
        copy = place / f"env-{environment_key(environment)}"
        begun = True
        seconds = _stage(environment, copy, granted, stopped)
        said = f"environment: {environment} staged to {copy} on {len(granted.hosts)} nodes in {seconds:.1f} s"
        program = [str(copy / Path(program[0]).relative_to(environment)), *program[1:]]
    except (CannotStage, OSError) as why:
        said = f"note: --stage-env {folder}: {why}; the environment is used where it lies"
    say([said])
    try:
        yield list(program)
    finally:
        if begun:
            with suppress(CannotStage, OSError):
                _on_each_node(granted, ["clean", str(place)], CLEAN_WITHIN, lambda: False)
            shutil.rmtree(place, ignore_errors=True)  # with salloc the launcher's host is none of them


def environment_to_stage(program: Sequence[str], granted: Allocation) -> Path:
    """The virtual environment whose interpreter runs the program. Raises `CannotStage` where none can be copied."""
    if granted.source != "slurm":
        raise CannotStage("it works by Slurm's sbcast, and this is no Slurm job")
    for tool in ("sbcast", "srun", "tar"):
        if shutil.which(tool) is None:
            raise CannotStage(f"there is no {tool} on PATH")
    environment = Path(program[0]).parent.parent
    if not (environment / "pyvenv.cfg").is_file():
        raise CannotStage(f"{program[0]} is in no virtual environment (no pyvenv.cfg in {environment})")
    return environment


def environment_key(environment: Path) -> str:
    """A short hash of what is installed: the lists of files that installers write, with a hash of each file."""
    import hashlib

    whole = hashlib.sha256()
    listed = [environment / "pyvenv.cfg"]
    for pattern in ("*.dist-info/RECORD", "*.pth"):
        listed += sorted(environment.glob(f"lib/python3*/site-packages/{pattern}"))
    for path in listed:
        whole.update(f"{path.relative_to(environment)}\0{path.stat().st_size}\0".encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def _stage(environment: Path, copy: Path, granted: Allocation, stopped: Callable[[], bool]) -> float:
    """Have the copy on every node; seconds that it took."""
    begun = time.monotonic()
    status, words = _on_each_node(granted, ["look", str(copy.parent), copy.name], WITHIN, stopped)
    if status == THERE:
        return time.monotonic() - begun
    if status != NEEDED:
        raise CannotStage(words or f"srun ended with status {status}")
    if not make_folders(copy.parent):
        raise CannotStage(f"{copy.parent} cannot be made on {os.uname().nodename}, or is not this user's alone")
    packed = copy.parent / f"packed-{os.getpid()}.tar"
    try:
        _do(["tar", "--create", "--file", str(packed), "-C", f"{environment}/", "."], WITHIN, stopped)
        sha256 = file_sha256(packed)
        _do(["sbcast", "--force", str(packed), str(archive_of(copy))], WITHIN, stopped)
    finally:
        packed.unlink(missing_ok=True)
    status, words = _on_each_node(granted, ["unpack", str(copy.parent), copy.name, sha256], WITHIN, stopped)
    if status != THERE:
        raise CannotStage(words or f"srun ended with status {status}")
    return time.monotonic() - begun


def _on_each_node(
    granted: Allocation, arguments: Sequence[str], seconds: float, stopped: Callable[[], bool]
) -> tuple[int, str]:
    """Run this module once on every node; the largest exit status, and the last line that was said."""
    srun = slurm.step_command(os.environ["SLURM_JOB_ID"], [host.name for host in granted.hosts])
    srun += ["--mpi=none", "--chdir=/"]
    return _run([*srun, sys.executable, "-m", "cluster.stage_env", *arguments], seconds, stopped)


def _do(command: Sequence[str], seconds: float, stopped: Callable[[], bool]) -> None:
    status, words = _run(command, seconds, stopped)
    if status:
        raise CannotStage(f"{command[0]} ended with status {status}: {words}")


def _run(command: Sequence[str], seconds: float, stopped: Callable[[], bool]) -> tuple[int, str]:
    deadline = time.monotonic() + seconds
    with subprocess.Popen(
        command, env=step_environment(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        while True:
            try:
                said, _ = running.communicate(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                if stopped() or time.monotonic() > deadline:
                    running.kill()
                    why = "the job was told to stop" if stopped() else f"not done in {seconds:g} s"
                    raise CannotStage(f"{command[0]}: {why}") from None
    lines = [line for line in said.splitlines() if line and not line.startswith(("srun: error", "slurmstepd"))]
    return running.returncode, lines[-1] if lines else ""


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """For a step of one task a node, whatever the job asked for."""
    shape = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_TASKS_PER_NODE", "SLURM_GPUS", "SLURM_TRES_PER_TASK")
    kept = {name: value for name, value in environ.items() if not name.startswith(shape)}
    return with_project({**kept, "SLURM_EXPORT_ENV": "ALL"})


# ── on each node ──────────────────────────────────────────────────────────────────────────────────


def main(arguments: Sequence[str]) -> int:
    what, folder, *rest = arguments
    place, here = Path(folder), os.uname().nodename
    if what == "clean":
        shutil.rmtree(place, ignore_errors=True)
        return 0
    copy = place / rest[0]
    try:
        if not make_folders(place):
            print(f"{place} cannot be made on {here}, or is not this user's alone")
            return IMPOSSIBLE
        if what == "look":
            return THERE if copy.is_dir() else NEEDED
        unpack(archive_of(copy), copy, rest[1])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"{here} cannot unpack it: {error}")
        return IMPOSSIBLE
    return THERE


def unpack(archive: Path, copy: Path, sha256: str) -> None:
    """Unpack the archive beside, then rename: the copy is whole or not there.

    Raises ValueError where the archive is not the one that was packed.
    """
    if copy.is_dir():
        return
    if file_sha256(archive) != sha256:
        raise ValueError(f"{archive} arrived changed")
    aside = copy.with_name(f"{copy.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        aside.mkdir(mode=0o700)
        subprocess.run(["tar", "--extract", "--file", str(archive), "-C", str(aside)], check=True, capture_output=True)
        with suppress(OSError):  # another host on the same disk was faster
            aside.rename(copy)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    archive.unlink(missing_ok=True)


def make_folders(place: Path) -> bool:
    """The user's folder and the job's in it; whether both are this user's alone."""
    return make_private(place.parent) and make_private(place)


def archive_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.tar")


def file_sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
