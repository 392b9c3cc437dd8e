"""What crosses mpirun: forwarded by name, taken out, given to each rank."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.allocation import Allocation, Host
from cluster.environment import (
    default_omp_threads,
    forwarded_names,
    mpirun_environment,
    rank_environment,
    simulated_gpus,
)
from cluster.errors import LauncherError
from cluster.rendezvous import MASTER_PORTS, first_port, hold_port, rendezvous

UNEVEN = Allocation("slurm", (Host("n1", 3, 3, 16), Host("n2", 1, 1, 16)))
HERE = Allocation("local", (Host("localhost", 2, 0, 2),))
HERE_IS_N1 = {"n1": False, "n2": True}.__getitem__


def test_well_known_variables_and_those_asked_for_are_forwarded_sorted() -> None:
    environ = {"PATH": "/bin", "NCCL_DEBUG": "INFO", "HF_HOME": "/hf", "EDITOR": "vi", "MY_TOKEN": "x"}

    assert forwarded_names(environ, ["MY_TOKEN"]) == ["HF_HOME", "MY_TOKEN", "NCCL_DEBUG", "PATH"]


def test_the_first_nodes_gpus_are_not_forwarded_to_the_others() -> None:
    assert forwarded_names({"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_HOME": "/cuda"}) == ["CUDA_HOME"]


def test_mpirun_sees_slots_as_planned_whatever_slurms_tasks_say() -> None:
    slurm = {"SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_NTASKS": "2", "SLURM_EXPORT_ENV": "NONE"}

    environ = mpirun_environment(slurm, UNEVEN, None, HERE_IS_N1)

    assert environ["SLURM_TASKS_PER_NODE"] == "3,1"
    assert environ["SLURM_NTASKS"] == "4"
    assert environ["SLURM_EXPORT_ENV"] == "ALL"


def test_the_step_of_mpiruns_daemons_asks_for_the_gpus_of_its_own_hosts() -> None:
    assert mpirun_environment({"SLURM_GPUS": "4"}, UNEVEN, None, HERE_IS_N1)["SLURM_GPUS"] == "1"


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "TORCHELASTIC_RUN_ID"])
def test_an_outer_launchs_identity_is_taken_out(name: str) -> None:
    assert name not in mpirun_environment({name: "3"}, UNEVEN, None, HERE_IS_N1)


def test_parameters_that_slurm_sets_for_open_mpi_are_kept() -> None:
    given = {"OMPI_MCA_plm_slurm_args": "--external-launcher", "PRTE_MCA_plm_slurm_args": "--external-launcher"}

    assert mpirun_environment(given, UNEVEN, None, HERE_IS_N1).items() >= given.items()


def test_away_from_slurm_no_trace_of_a_surrounding_job_reaches_mpirun() -> None:
    here = Allocation("local", (Host("localhost", 2, 0, 2),))

    environ = mpirun_environment({"SLURM_JOB_ID": "7", "SLURM_NODELIST": "n1", "PATH": "/bin"}, here, None, HERE_IS_N1)

    assert [name for name in environ if name.startswith("SLURM_")] == []
    assert environ["PATH"] == "/bin"


@pytest.mark.parametrize(("user", "allowed"), [(0, "1"), (1000, None)], ids=["root", "another user"])
def test_open_mpi_is_told_that_root_means_it(user: int, allowed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)

    environ = mpirun_environment({}, UNEVEN, None, HERE_IS_N1)

    assert environ.get("OMPI_ALLOW_RUN_AS_ROOT") == environ.get("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") == allowed


def test_one_nic_option_sets_nccl_and_gloo() -> None:
    environ = mpirun_environment({}, UNEVEN, "ib0", HERE_IS_N1)

    assert environ["NCCL_SOCKET_IFNAME"] == environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_a_rank_finds_torchruns_variables() -> None:
    plan = {
        "master_addr": "n1",
        "master_port": 20001,
        "store_token": "5ec2e7",
        "run_dir": "/out/a",
        "attempt_dir": "/out/a/attempt-0002",
        "attempt": 2,
    }

    assert rank_environment(plan, UNEVEN, UNEVEN.place(3)) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "20001",
        "CLUSTER_STORE_TOKEN": "5ec2e7",
        "TORCHELASTIC_ERROR_FILE": "/out/a/attempt-0002/errors/rank-3.json",
        "CLUSTER_RUN_DIR": "/out/a",
        "CLUSTER_ATTEMPT": "2",
    }


@pytest.mark.parametrize(("cpus", "ranks", "threads"), [(16, 4, 4), (2, 4, 1), (0, 8, 1), (17, 4, 4)])
def test_threads_are_an_even_share_of_the_hosts_cpus(cpus: int, ranks: int, threads: int) -> None:
    assert default_omp_threads(Host("n", ranks, 0, cpus)) == threads


def test_simulated_nodes_see_different_gpus() -> None:
    two = Allocation("local", (Host("localhost", 2, 2, 8),) * 2)

    assert [simulated_gpus(["0", "1", "2", "3"], two.place(rank), two.hosts[0]) for rank in (0, 2)] == [
        ["0", "1"],
        ["2", "3"],
    ]


def test_ports_of_neighbouring_jobs_and_attempts_differ_and_stay_in_range() -> None:
    ports = [first_port(job, restarts, attempt) for job in range(5) for restarts in range(3) for attempt in (1, 2)]

    assert len(set(ports)) == len(ports)
    assert all(port in MASTER_PORTS for port in ports)
    assert MASTER_PORTS.stop <= 32768


def test_a_port_that_is_listened_at_or_held_is_passed_over() -> None:
    with hold_port(MASTER_PORTS[100]) as held, hold_port(MASTER_PORTS[100]) as other:
        port = held.getsockname()[1]
        assert other.getsockname()[1] != port

        with socket.create_server(("127.0.0.1", port)):  # rank 0
            held.close()
            with hold_port(port) as later:
                assert later.getsockname()[1] != port


def test_where_all_ports_are_taken_the_error_names_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.rendezvous.MASTER_PORTS", range(20000, 20002))

    with hold_port(20000), hold_port(20000), pytest.raises(LauncherError, match="between 20000 and 20001 on this host"):
        hold_port(20000)


def test_a_first_host_elsewhere_chooses_its_port_itself() -> None:
    meeting = rendezvous(UNEVEN, {"SLURM_JOB_ID": "7"}, 1, "10.0.0.1")
    meeting.held.close()

    assert (meeting.address, meeting.port) == ("n1", first_port(7, 0, 1))


def test_twenty_launches_of_one_job_at_once_on_one_host_have_twenty_ports() -> None:
    with ThreadPoolExecutor(20) as launchers:
        meetings = list(launchers.map(lambda _: rendezvous(HERE, {"SLURM_JOB_ID": "7"}, 1, "10.0.0.1"), range(20)))

    assert len({meeting.port for meeting in meetings}) == 20
    assert {meeting.address for meeting in meetings} == {"10.0.0.1"}
    for meeting in meetings:
        meeting.held.close()
