"""From Slurm's environment, host lists and this machine to one allocation."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.allocation import (
    Allocation,
    Host,
    RankPlace,
    disagreement,
    from_hostfile_text,
    from_hosts,
    from_slurm,
    on_this_machine,
    parse_granted_gpus,
)
from cluster.errors import LauncherError, RequestError
from cluster.granted import find_allocation
from stand_ins import stand_ins

BATCH_BODY = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_CPUS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "0",
}

UNEVEN_JOB = (  # scontrol show job -d -o, Slurm 22.05
    "JobId=2 JobName=e.sh NodeList=n[1-2] JOB_GRES=gpu:3   Nodes=n1 CPU_IDs=0-1 Mem=0 GRES=gpu:2(IDX:0-1)"
    "   Nodes=n2 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:0) MinCPUsNode=1"
)


def test_ranks_are_the_granted_gpus() -> None:
    allocation = from_slurm(BATCH_BODY, {"n1": 2, "n2": 1})

    assert allocation.hosts == (Host("n1", 2, 2, 4), Host("n2", 1, 1, 4))


def test_ranks_are_the_tasks_where_no_gpu_was_asked_for() -> None:
    allocation = from_slurm({**BATCH_BODY, "SLURM_TASKS_PER_NODE": "8,4"}, {"n1": 0, "n2": 0})

    assert [host.ranks for host in allocation.hosts] == [8, 4]


def test_ranks_per_node_overrides_gpus_and_tasks() -> None:
    assert from_slurm(BATCH_BODY, {"n1": 4, "n2": 4}, ranks_per_node=3).world_size == 6


@pytest.mark.parametrize(
    ("variable", "value", "gpus"),
    [("SLURM_GPUS_PER_NODE", "8", 8), ("SLURM_GPUS_PER_NODE", "a100:4", 4), ("SLURM_GPUS_ON_NODE", "2", 2)],
)
def test_without_scontrol_the_environment_says_how_many_gpus(variable: str, value: str, gpus: int) -> None:
    allocation = from_slurm({**BATCH_BODY, variable: value}, None)

    assert [host.gpus for host in allocation.hosts] == [gpus, gpus]


def test_scontrol_tells_uneven_gpus_for_each_host() -> None:
    assert parse_granted_gpus(UNEVEN_JOB) == {"n1": 2, "n2": 1}


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("gpu:2(IDX:0-1)", 2),
        ("gpu:a100:4(IDX:0,2-4)", 4),
        ("gpu:a100:2(IDX:0-1),gpu:v100:1(IDX:2)", 3),
        ("shard:8(0/8),gpu:1(IDX:3)", 1),
        ("", 0),
    ],
)
def test_gres_of_every_form_is_counted(gres: str, count: int) -> None:
    assert parse_granted_gpus(f"  Nodes=n[1-2] CPU_IDs=0 Mem=0 GRES={gres}\n") == {"n1": count, "n2": count}


def test_an_srun_step_is_refused_and_the_way_out_is_said() -> None:
    with pytest.raises(LauncherError, match=r"srun step 7\.0.*batch body"):
        from_slurm({**BATCH_BODY, "SLURM_STEP_ID": "0"}, None)


def test_the_interactive_step_of_salloc_is_no_srun_step() -> None:
    assert from_slurm({**BATCH_BODY, "SLURM_STEP_ID": "4294967290"}, None).world_size == 4


def test_a_host_without_a_gpu_in_a_gpu_job_is_refused() -> None:
    with pytest.raises(LauncherError, match="none on n2: ask with --gpus-per-node"):
        from_slurm(BATCH_BODY, {"n1": 2, "n2": 0})


def test_a_job_id_without_a_node_list_is_no_job() -> None:
    with pytest.raises(LauncherError, match="SLURM_JOB_NODELIST is not"):
        from_slurm({"SLURM_JOB_ID": "7"}, None)


def test_a_heterogeneous_job_is_refused() -> None:
    with pytest.raises(LauncherError, match="heterogeneous"):
        from_slurm({**BATCH_BODY, "SLURM_HET_SIZE": "2"}, None)


def test_counts_that_do_not_fit_the_node_list_are_refused() -> None:
    with pytest.raises(LauncherError, match=r"SLURM_TASKS_PER_NODE=2\(x3\) counts 3 nodes, SLURM_JOB_NODELIST 2"):
        from_slurm({**BATCH_BODY, "SLURM_TASKS_PER_NODE": "2(x3)"}, None)


def test_a_difference_between_tasks_and_ranks_is_said_in_one_line() -> None:
    allocation = from_slurm({**BATCH_BODY, "SLURM_TASKS_PER_NODE": "1(x2)"}, {"n1": 4, "n2": 4})

    line = disagreement({"SLURM_TASKS_PER_NODE": "1(x2)"}, allocation)

    assert line is not None
    assert line.startswith("Slurm granted 1(x2) tasks per node, running 4, 4 ranks")
    assert disagreement({"SLURM_TASKS_PER_NODE": "4(x2)"}, allocation) is None


def test_in_a_job_the_launcher_says_where_it_runs_other_ranks_than_slurm_granted_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, scontrol=f"echo '{UNEVEN_JOB}'"))
    options = Namespace(hosts=None, hostfile=None, cluster="auto", nodes=None, ranks_per_node=None)

    found = find_allocation(options, {**BATCH_BODY, "SLURM_TASKS_PER_NODE": "1(x2)"})

    assert [host.ranks for host in found.hosts] == [2, 1]
    assert capsys.readouterr().out.startswith("note: Slurm granted 1(x2) tasks per node, running 2, 1 ranks")


def test_the_last_element_of_an_array_counts_its_own_gpus_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_all = f"echo '{UNEVEN_JOB}'; echo '{UNEVEN_JOB}' | sed s/gpu:1/gpu:3/"  # by the number that it shares with all
    monkeypatch.setenv(
        "PATH", stand_ins(tmp_path, scontrol=f"if [ $4 = 2_5 ]; then echo '{UNEVEN_JOB}'; else {of_all}; fi")
    )
    options = Namespace(hosts=None, hostfile=None, cluster="auto", nodes=None, ranks_per_node=None)
    element = {"SLURM_JOB_ID": "2", "SLURM_ARRAY_JOB_ID": "2", "SLURM_ARRAY_TASK_ID": "5"}

    assert [host.ranks for host in find_allocation(options, {**BATCH_BODY, **element}).hosts] == [2, 1]


def test_hosts_are_written_as_in_the_guide() -> None:
    assert from_hosts("a:8,b.example.org:4,c").hosts == (
        Host("a", 8, None, 0),
        Host("b.example.org", 4, None, 0),
        Host("c", 1, None, 0),
    )


@pytest.mark.parametrize("text", ["", "a:", "a:0", "a:8,", "a b", "-oProxyCommand=x:1", "a:-1", "a;b"])
def test_a_host_list_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="cannot read the host"):
        from_hosts(text)


def test_a_hostfile_may_be_open_mpis_or_mpichs() -> None:
    text = "# two machines\na slots=8 max_slots=8\n\nb:4   # the small one\nc\n"

    assert [(host.name, host.ranks) for host in from_hostfile_text(text).hosts] == [("a", 8), ("b", 4), ("c", 1)]


def test_a_hostfile_without_a_host_is_refused() -> None:
    with pytest.raises(RequestError, match="names no host"):
        from_hostfile_text("# nothing\n")


def test_simulated_nodes_share_out_gpus_and_cpus() -> None:
    assert on_this_machine(nodes=2, ranks_per_node=None, gpus=8, cpus=32).hosts == (
        Host("localhost", 4, 4, 16),
        Host("localhost", 4, 4, 16),
    )


def test_more_simulated_nodes_than_gpus_are_refused() -> None:
    with pytest.raises(RequestError, match="1 GPU for 2 simulated nodes"):
        on_this_machine(nodes=2, ranks_per_node=None, gpus=1, cpus=8)


UNEVEN = Allocation("slurm", (Host("b", 2, 2, 8), Host("a", 1, 1, 8), Host("c", 4, 2, 8)))


def test_the_rank_map_fills_hosts_in_allocation_order() -> None:
    assert UNEVEN.rank_map() == [
        RankPlace(0, 0, "b", 0, 0),
        RankPlace(1, 0, "b", 1, 1),
        RankPlace(2, 1, "a", 0, 0),
        RankPlace(3, 2, "c", 0, 0),
        RankPlace(4, 2, "c", 1, 1),
        RankPlace(5, 2, "c", 2, 0),
        RankPlace(6, 2, "c", 3, 1),
    ]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_place_of_one_rank_is_its_line_of_the_rank_map(shares: list[tuple[int, int]]) -> None:
    allocation = Allocation("slurm", tuple(Host(f"n{i}", ranks, gpus, 4) for i, (ranks, gpus) in enumerate(shares)))

    assert [allocation.place(rank) for rank in range(allocation.world_size)] == allocation.rank_map()
    with pytest.raises(IndexError):
        allocation.place(allocation.world_size)


def test_an_allocation_survives_the_plan_file() -> None:
    assert Allocation.from_json(json.loads(json.dumps(UNEVEN.to_json()))) == UNEVEN


@pytest.mark.parametrize(
    ("hosts", "line"),
    [
        ([Host("a", 8, 8, 0), Host("b", 8, 8, 0)], "2 nodes × 8 GPUs = 16 ranks"),
        ([Host("a", 1, 1, 0)], "1 node × 1 GPU = 1 rank"),
        ([Host("a", 4, 2, 0), Host("b", 4, 2, 0)], "2 nodes × 2 GPUs × 4 ranks = 8 ranks"),
        ([Host("a", 2, 0, 0), Host("b", 2, 0, 0)], "2 nodes × 2 ranks = 4 ranks"),
        ([Host("a", 8, 8, 0), Host("b", 4, 4, 0)], "2 nodes = 12 ranks (a: 8, b: 4)"),
    ],
)
def test_the_plan_line_says_nodes_gpus_and_ranks(hosts: list[Host], line: str) -> None:
    assert Allocation("slurm", tuple(hosts)).summary() == line


def test_the_rank_table_of_a_large_job_shows_both_ends() -> None:
    allocation = Allocation("slurm", tuple(Host(f"n{i}", 8, 8, 0) for i in range(100)))

    lines = allocation.table()

    assert len(lines) == 1 + 32 + 1
    assert lines[1].split() == ["0", "0", "n0", "0", "0"]
    assert "(768 more)" in lines[17]
    assert lines[-1].split() == ["799", "99", "n99", "7", "7"]


def test_a_plan_with_a_host_that_none_can_be_called_is_not_believed() -> None:
    with pytest.raises(LauncherError, match=r"^the plan names a host '-oProxyCommand=x': wanted letters, digits"):
        Allocation.from_json({"source": "ssh", "hosts": [["-oProxyCommand=x", 1, 0, 0]]})


def test_more_hosts_than_any_job_has_are_refused_in_its_details_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.allocation.MAX_HOSTS", 1)

    with pytest.raises(RequestError, match=r"^the job's details name more than 1 hosts$"):
        parse_granted_gpus(UNEVEN_JOB)
