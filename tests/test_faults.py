"""The part of the battery that runs on each commit: one play of each fault. `make faults` plays all, again and again.

A play fails with all that was wrong: verdict, guilty rank and host, time, steps lost, orphans, Slurm's state, weights.
"""

from pathlib import Path

import pytest

from conftest import Mpi
from faults import ROWS, Row, Workload, on_each_commit, play_row
from slurm_lab import SlurmLab
from stage import make_project

PLAYS = [
    pytest.param(mpi, row, workload, id=f"{row.name} ({workload.name}, {mpi})")
    for row in ROWS
    for workload in row.workloads
    for mpi in ("openmpi-4.1.8", "openmpi-5.0.11")
    if on_each_commit(row, workload, mpi)
]


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all plays, so that the training's tokens and its undisturbed result are made once."""
    return make_project(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(("mpi", "row", "workload"), PLAYS, indirect=["mpi"])
def test_a_fault_ends_in_its_verdict_and_the_run_in_the_undisturbed_result(
    slurm: SlurmLab, mpi: Mpi, row: Row, workload: Workload, shared_project: Path
) -> None:
    name = f"{mpi.name}-{workload.name}-{ROWS.index(row)}"

    # How fast it is `make faults` tells, on a machine that is at rest.
    result = play_row(row, workload, slurm, mpi, shared_project, name, seed=ROWS.index(row), patience=3.0)

    assert result.problems == [], result.said
