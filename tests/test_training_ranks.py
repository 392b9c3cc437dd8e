"""Which rank a process is, for every launcher and for every way they nest."""

import pytest

from training.errors import InputError
from training.ranks import RankInfo, check_rendezvous

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
BATCH_BODY = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}
SRUN = BATCH_BODY | {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x3),3",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, RankInfo("single", 0, 1, 0, 1)),
        (TORCHRUN, RankInfo("torchrun's variables", 5, 8, 1, 4)),
        (OPEN_MPI, RankInfo("Open MPI", 3, 4, 1, 2)),
        (HYDRA, RankInfo("MPICH", 2, 4, 0, 2)),
        (SRUN, RankInfo("srun", 6, 16, 2, 4)),
    ],
)
def test_each_launcher_is_read_from_its_own_variables(environ, expected):
    assert RankInfo.from_env(environ) == expected


def test_a_rank_of_mpirun_in_a_slurm_job_is_no_rank_zero_of_slurm():
    assert RankInfo.from_env(SRUN | OPEN_MPI).rank == 3
    assert RankInfo.from_env(BATCH_BODY | HYDRA).rank == 2


def test_torchrun_inside_an_srun_step_is_torchrun():
    assert RankInfo.from_env(SRUN | TORCHRUN).launcher == "torchrun's variables"


def test_half_of_torchruns_variables_are_not_torchrun():
    assert RankInfo.from_env({"RANK": "5", "WORLD_SIZE": "8"} | OPEN_MPI).launcher == "Open MPI"


@pytest.mark.parametrize("step", [None, "4294967290", "4294967291", "batch"])
def test_the_shells_of_a_job_are_no_ranks(step):
    environ = BATCH_BODY if step is None else BATCH_BODY | {"SLURM_STEP_ID": step}
    assert RankInfo.from_env(environ) == RankInfo("single")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"OMPI_COMM_WORLD_RANK": "4"}, r"OMPI_COMM_WORLD_RANK=4 but OMPI_COMM_WORLD_SIZE=4: a rank must be below"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2"}, r"OMPI_COMM_WORLD_LOCAL_RANK=2 but OMPI_COMM_WORLD_LOCAL_SIZE=2"),
        ({"OMPI_COMM_WORLD_SIZE": "many"}, r"OMPI_COMM_WORLD_SIZE='many' is no rank or size"),
        ({"OMPI_COMM_WORLD_RANK": "-1"}, r"OMPI_COMM_WORLD_RANK='-1' is no rank or size"),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "9"}, r"LOCAL_SIZE=9 is more than OMPI_COMM_WORLD_SIZE=4"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        RankInfo.from_env(OPEN_MPI | change)


def test_several_ranks_need_to_be_told_where_to_meet():
    with pytest.raises(InputError, match=r"MASTER_PORT not set.*-x MASTER_ADDR=<first host> -x MASTER_PORT=5001"):
        check_rendezvous(RankInfo("Open MPI", 0, 2, 0, 2), {"MASTER_ADDR": "a"})
    with pytest.raises(InputError, match=r"MASTER_PORT='http': a port from 1 to 65535"):
        check_rendezvous(RankInfo("Open MPI", 0, 2, 0, 2), {"MASTER_ADDR": "a", "MASTER_PORT": "http"})
    check_rendezvous(RankInfo("single"), {})
