"""Which rank of how many this process is, from the variables its launcher set.

Nobody else in the package reads a rank variable. Launchers nest (mpirun runs inside a Slurm batch job,
torchrun may run inside an srun step), so the table is read innermost first and the first launcher whose
variables are all there wins. Slurm is last because every rank that mpirun starts also inherits the batch
body's SLURM_PROCID=0: asking Slurm first would make every one of them rank 0.

Sources: torchrun, https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables ·
Open MPI, https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html · Hydra (MPICH), the
environment of its proxies · srun, https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import InputError


@dataclass(frozen=True)
class Launcher:
    """The variables by which one launcher tells a process its place."""

    name: str
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str | None
    """None where the launcher has no such variable; the number is then taken from `local_count`."""
    local_count: str | None = None
    """A variable whose value is Slurm's count grammar, `4(x2),3`, in node order."""
    step: str | None = None
    """A variable that must name an ordinary job step for this launcher to have started the process."""


SINGLE, TORCHRUN = "single", "torchrun's variables"

LAUNCHERS = (
    Launcher(TORCHRUN, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Launcher("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Launcher(
        "srun",
        "SLURM_PROCID",
        "SLURM_NTASKS",
        "SLURM_LOCALID",
        None,
        local_count="SLURM_STEP_TASKS_PER_NODE",
        step="SLURM_STEP_ID",
    ),
)

# Steps that run the job's own shells: extern, batch, interactive and pending (slurm.h, SLURM_PENDING_STEP
# and below).
FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class RankInfo:
    """This process's place among all that train together."""

    launcher: str = SINGLE
    """The launcher's name, where one is found."""
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "RankInfo":
        """The place that the innermost launcher gave this process; rank 0 of 1 where there is no launcher.

        Raises:
            InputError: a value is no number, or a rank is not below its size.
        """
        for launcher in LAUNCHERS:
            if _started_by(launcher, environ):
                return _read(launcher, environ)
        return cls()


def _started_by(launcher: Launcher, environ: Mapping[str, str]) -> bool:
    needed = [
        launcher.rank,
        launcher.world_size,
        launcher.local_rank,
        launcher.local_world_size,
        launcher.step,
    ]
    if any(name is not None and name not in environ for name in needed):
        return False
    if launcher.step is None:
        return True
    step = environ[launcher.step]
    return step.isdigit() and int(step) < FIRST_SPECIAL_STEP


def _read(launcher: Launcher, environ: Mapping[str, str]) -> RankInfo:
    rank = _number(environ, launcher.rank)
    world_size = _number(environ, launcher.world_size)
    local_rank = _number(environ, launcher.local_rank)
    if launcher.local_world_size is not None:
        local_world_size = _number(environ, launcher.local_world_size)
    else:
        local_world_size = _largest_count(environ.get(launcher.local_count or "", ""), local_rank + 1)
    for name, value, size_name, size in (
        (launcher.rank, rank, launcher.world_size, world_size),
        (
            launcher.local_rank,
            local_rank,
            launcher.local_world_size or "the ranks of this host",
            local_world_size,
        ),
    ):
        if value >= size:
            raise InputError(
                f"{name}={value} but {size_name}={size}: a rank must be below its size; "
                f"unset the variables of the launcher that did not start this process ({launcher.name} is read here)"
            )
    if local_world_size > world_size:
        raise InputError(
            f"{launcher.local_world_size}={local_world_size} is more than {launcher.world_size}={world_size}; "
            f"unset the variables of the launcher that did not start this process ({launcher.name} is read here)"
        )
    return RankInfo(launcher.name, rank, world_size, local_rank, local_world_size)


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name}={text!r} is no rank or size: a whole number of at least 0 is wanted; unset or fix it")
    return int(text)


def _largest_count(counts: str, at_least: int) -> int:
    """The largest count of `4(x2),3`: which entry is this host's does not matter for how many GPUs to
    expect."""
    sizes = [part.split("(")[0] for part in counts.split(",")]
    return max([at_least, *(int(size) for size in sizes if size.isdigit())])


def check_rendezvous(ranks: RankInfo, environ: Mapping[str, str]) -> None:
    """Refuse to wait for peers that nobody said how to find.

    Raises:
        InputError: several ranks, and MASTER_ADDR or MASTER_PORT is missing or no port.
    """
    if ranks.world_size == 1:
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} not set: {ranks.world_size} ranks need them to find each other; give mpirun "
            f"-x MASTER_ADDR=<first host> -x MASTER_PORT=5001 (mpiexec of MPICH: -genv MASTER_ADDR <first host> ...)"
        )
    port = environ["MASTER_PORT"]
    if not (port.isdigit() and 0 < int(port) < 65536):
        raise InputError(f"MASTER_PORT={port!r}: a port from 1 to 65535 is wanted, such as 5001")
