"""The device of a rank: granted GPUs are used or missed aloud."""

import pytest

from training.device import choose_device, granted_gpus, threads_per_rank
from training.errors import InputError
from training.ranks import RankInfo

ALONE = RankInfo("single")
SECOND_OF_TWO = RankInfo("Open MPI", 1, 2, 1, 2)


def test_without_gpus_and_without_a_grant_it_is_the_cpu():
    assert choose_device("auto", ALONE, 0, {}) == "cpu"
    assert choose_device("auto", ALONE, 0, {"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "0,1"}) == "cpu"


def test_each_rank_of_a_host_takes_its_own_gpu():
    assert choose_device("auto", SECOND_OF_TWO, 8, {}) == "cuda:1"
    assert choose_device("cuda", SECOND_OF_TWO, 2, {}) == "cuda:1"


def test_a_rank_that_was_given_one_gpu_of_its_own_takes_that():
    assert choose_device("auto", SECOND_OF_TWO, 1, {"CUDA_VISIBLE_DEVICES": "5"}) == "cuda:0"


def test_more_ranks_than_gpus_is_an_error():
    with pytest.raises(InputError, match=r"2 ranks on this host but torch sees 1 of its GPUs.*one rank per GPU"):
        choose_device("auto", SECOND_OF_TWO, 1, {})


@pytest.mark.parametrize(
    "grant", [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"SLURM_JOB_GPUS": "3"}, {"SLURM_GPUS_ON_NODE": "8"}]
)
def test_granted_gpus_that_torch_does_not_see_are_an_error_unless_the_cpu_is_asked_for(grant):
    name, value = next(iter(grant.items()))
    with pytest.raises(InputError, match=rf"GPUs were granted \({name}={value}\) but torch sees none.*--device cpu"):
        choose_device("auto", ALONE, 0, grant)
    assert choose_device("cpu", ALONE, 0, grant) == "cpu"


def test_cuda_that_is_asked_for_and_not_there_is_an_error():
    with pytest.raises(InputError, match=r"--device cuda was given but torch sees none"):
        choose_device("cuda", ALONE, 0, {})


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_values_that_hide_all_gpus_are_no_grant(value):
    assert granted_gpus({"CUDA_VISIBLE_DEVICES": value, "SLURM_GPUS_ON_NODE": "4"}) is None


def test_the_cpus_of_a_host_are_shared_among_its_ranks():
    assert threads_per_rank(8, SECOND_OF_TWO) == 4
    assert threads_per_rank(1, SECOND_OF_TWO) == 1
