"""mpirun's three dialects: which one an executable speaks, and the whole command line in each."""

from pathlib import Path

import pytest

from cluster.allocation import Allocation, Host
from cluster.errors import LauncherError, RequestError
from cluster.hostfile import hostfile_text
from cluster.mpirun import (
    HYDRA,
    OPEN_MPI_4,
    OPEN_MPI_5,
    Dialect,
    Mpirun,
    dialect_from_version,
    dialect_of,
    find_mpirun,
    mpirun_command,
)
from conftest import Mpi
from stand_ins import stand_ins

UNEVEN = Allocation("ssh", (Host("b", 8, None, 0), Host("a", 4, None, 0)))

COMMANDS = {
    OPEN_MPI_4: [
        *["/opt/mpirun", "--hostfile", "/run/hostfile", "-np", "12", "--map-by", "slot", "--bind-to", "none"],
        *["--wdir", "/work", "--mca", "btl_tcp_if_include", "ib0", "--mca", "oob_tcp_if_include", "ib0"],
        *["--mca", "plm_rsh_agent", "ssh -p 2222", "-x", "HF_HOME", "-x", "PATH", "--display-map"],
        *["/venv/python", "-m", "cluster.rank"],
    ],
    OPEN_MPI_5: [
        *["/opt/mpirun", "--hostfile", "/run/hostfile", "-np", "12", "--map-by", "slot", "--bind-to", "none"],
        *["--wdir", "/work", "--mca", "btl_tcp_if_include", "ib0", "--prtemca", "prte_if_include", "ib0"],
        *["--prtemca", "plm_ssh_agent", "ssh -p 2222", "-x", "HF_HOME", "-x", "PATH", "--display-map"],
        *["/venv/python", "-m", "cluster.rank"],
    ],
    HYDRA: [
        *["/opt/mpirun", "-f", "/run/hostfile", "-n", "12", "-bind-to", "none", "-wdir", "/work", "-iface", "ib0"],
        *["-launcher", "ssh", "-launcher-exec", "ssh -p 2222", "-genvlist", "HF_HOME,PATH", "--display-map"],
        *["/venv/python", "-m", "cluster.rank"],
    ],
}


@pytest.mark.parametrize("dialect", COMMANDS, ids=lambda dialect: dialect.name)
def test_every_argument_of_the_guides_command_has_its_counterpart(dialect: Dialect) -> None:
    command = mpirun_command(
        Mpirun("/opt/mpirun", dialect),
        UNEVEN,
        hostfile="/run/hostfile",
        program=["/venv/python", "-m", "cluster.rank"],
        forward=["HF_HOME", "PATH"],
        wdir="/work",
        nic="ib0",
        ssh="ssh -p 2222",
        extra=["--display-map"],
    )

    assert command == COMMANDS[dialect]


def test_ssh_is_only_spoken_of_where_hosts_are_reached_by_ssh() -> None:
    command = mpirun_command(
        Mpirun("/opt/mpirun", OPEN_MPI_4),
        UNEVEN._replace(source="slurm"),
        hostfile="h",
        program=["p"],
        forward=[],
        wdir="/",
        ssh="ssh -p 2222",
    )

    assert "plm_rsh_agent" not in command


@pytest.mark.parametrize(
    ("dialect", "text"),
    [(OPEN_MPI_4, "b slots=8\na slots=4\n"), (OPEN_MPI_5, "b slots=8\na slots=4\n"), (HYDRA, "b:8\na:4\n")],
)
def test_the_hostfile_keeps_the_allocations_order(dialect: Dialect, text: str) -> None:
    assert hostfile_text(UNEVEN, dialect) == text


def test_simulated_nodes_are_one_line_of_the_hostfile() -> None:
    two = Allocation("local", (Host("localhost", 2, 0, 1),) * 2)

    assert hostfile_text(two, OPEN_MPI_5) == "localhost slots=4\n"


@pytest.mark.parametrize(
    ("version", "dialect"),
    [
        ("mpirun (Open MPI) 4.1.8\n\nReport bugs to http://www.open-mpi.org/community/help/\n", OPEN_MPI_4),
        ("mpirun.openmpi (OpenRTE) 4.1.4\n", OPEN_MPI_4),
        ("mpirun (Open MPI) 5.0.11\n", OPEN_MPI_5),
        ("HYDRA build details:\n    Version:                                 5.0.2\n", HYDRA),
    ],
)
def test_the_version_tells_the_dialect(version: str, dialect: Dialect) -> None:
    assert dialect_from_version("mpirun", version) is dialect


@pytest.mark.parametrize("version", ["", "mpirun (Open MPI) 3.1.6", "Intel(R) MPI Library for Linux* OS", "srun 22.05"])
def test_another_launcher_is_refused_by_its_own_words(version: str) -> None:
    with pytest.raises(LauncherError, match="wanted Open MPI 4 or 5, or MPICH"):
        dialect_from_version("/opt/mpirun", version)


def test_looking_at_an_mpirun_and_asking_it_agree(mpi: Mpi) -> None:
    import subprocess

    version = subprocess.run([mpi.mpirun, "--version"], capture_output=True, text=True, check=True).stdout

    assert dialect_of(str(mpi.mpirun)).name == mpi.dialect
    assert dialect_from_version(str(mpi.mpirun), version).name == mpi.dialect


def test_a_program_of_another_name_is_asked_what_it_is(tmp_path: Path) -> None:
    stand_ins(tmp_path, launcher="echo 'HYDRA build details:'")

    assert dialect_of(f"{tmp_path}/launcher") is HYDRA


def test_a_program_that_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "launcher").write_text("no program\n")

    with pytest.raises(LauncherError, match=r"launcher --version did not answer: .*Permission denied"):
        dialect_of(f"{tmp_path}/launcher")


@pytest.mark.parametrize("value", ["--oversubscribe", ":"])
def test_a_word_of_mpiruns_own_is_no_value(value: str) -> None:
    with pytest.raises(RequestError, match=rf"^--bind-to {value}: that is no value, but a word of mpirun's own$"):
        mpirun_command(
            Mpirun("mpirun", OPEN_MPI_5), UNEVEN, hostfile="h", program=["true"], forward=[], wdir=".", bind_to=value
        )


def test_an_mpirun_with_nothing_known_beside_it_is_asked(tmp_path: Path) -> None:
    stand_ins(tmp_path, mpirun="echo 'mpirun (Open MPI) 5.0.7'")

    assert dialect_of(f"{tmp_path}/mpirun") is OPEN_MPI_5


def test_path_comes_before_the_mpirun_beside_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("module", "venv"):
        stand_ins(tmp_path / folder, mpirun="", orterun="")
    monkeypatch.setattr("sys.executable", str(tmp_path / "venv/python"))

    assert find_mpirun(None, {"PATH": str(tmp_path / "module")}).path == str(tmp_path / "module/mpirun")
    assert find_mpirun(None, {"PATH": "/nowhere"}).path == str(tmp_path / "venv/mpirun")


def test_without_any_mpirun_the_error_says_where_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/bin/python")

    with pytest.raises(LauncherError, match=r"no mpirun on PATH or in /nowhere/bin: load .* module .*pip install"):
        find_mpirun(None, {"PATH": "/nowhere"})
