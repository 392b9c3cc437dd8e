"""Machines without a scheduler: the same launcher, over ssh, as in the guide."""

import sys
from pathlib import Path

import pytest

from conftest import Mpi
from slurm_lab import SlurmLab

WHERE = """
import os, socket
print(os.environ["RANK"], socket.gethostname(), os.environ["LOCAL_RANK"], os.environ["GIVEN"])
"""


@pytest.mark.parametrize("how", ["--hosts", "--hostfile"])
def test_hosts_are_reached_by_ssh_and_filled_in_order(slurm: SlurmLab, mpi: Mpi, how: str, tmp_path: Path) -> None:
    config = slurm.start_sshd()
    (tmp_path / "where.py").write_text(WHERE)
    (tmp_path / "hosts").write_text("w1 slots=2\nw2 slots=1\n")
    value = {"--hosts": "w1:2,w2:1", "--hostfile": "hosts"}[how]

    done = slurm.run(
        "w1",
        [sys.executable, "-m", "cluster.launch", how, value, "--ssh", f"ssh -F {config}", "--mpirun", str(mpi.mpirun)]
        + ["-x", "GIVEN", "--", "python", "where.py"],
        cwd=tmp_path,
        env={"GIVEN": "by name"},
    )

    assert "3 of 3 ranks completed" in done.stdout
    logs = tmp_path / "outputs/where/attempt-0001/logs"
    assert [(logs / f"rank-{rank}.log").read_text() for rank in range(3)] == [
        "0 w1 0 by name\n",
        "1 w1 1 by name\n",
        "2 w2 0 by name\n",
    ]


@pytest.mark.parametrize("mpi", ["openmpi-4.1.8"], indirect=True)
def test_a_host_that_cannot_be_reached_is_the_launchers_failure(slurm: SlurmLab, mpi: Mpi, tmp_path: Path) -> None:
    config = slurm.start_sshd()
    done = slurm.run(
        "w1",
        [sys.executable, "-m", "cluster.launch", "--hosts", "w1:1,no-such-host:1", "--ssh", f"ssh -F {config}"]
        + ["--mpirun", str(mpi.mpirun), "--", "true"],
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 70
    assert "before any rank began" in done.stdout
    assert "no-such-host" in done.stdout
