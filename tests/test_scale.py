"""What holds at ten thousand nodes: names, places, arguments, records; by the side of plainer ways to say the same."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.allocation import Allocation, Host, from_slurm
from cluster.channel import BEAT_EVERY, FENCE, Listener, beat_every
from cluster.command import launch_command
from cluster.environment import mpirun_environment
from cluster.errors import LauncherError, RequestError
from cluster.hostfile import hostfile_text
from cluster.mpirun import HYDRA, LONGEST_ARGUMENT, OPEN_MPI_4, OPEN_MPI_5, Dialect, Mpirun
from cluster.nodelist import compress_nodelist, expand_nodelist
from cluster.records import STATES, Records, read_records
from cluster.rundir import Attempt
from cluster.watchdog import SILENCE
from conftest import ROOT

NODES = 10_000
ALL = Allocation("slurm", tuple(Host(f"gpu{number:05d}", 8, 8, 96) for number in range(1, NODES + 1)))
ATTEMPT = Attempt(1, Path("/run"), Path("/run/attempt-0001"), Path("/run/attempt-0001/logs"))

Range = tuple[int, int, int]
"""Lowest, highest, digits."""

ranges = st.builds(lambda low, more, width: (low, low + more, width), *map(st.integers, (0, 0, 1), (120, 12, 4)))
brackets = st.lists(ranges, min_size=1, max_size=3)
pieces = st.one_of(st.text("abgnr-", min_size=1, max_size=3), brackets)
# A name begins with a letter or digit.
firsts = st.one_of(st.text("abgnr", min_size=1, max_size=3), brackets)
hosts = st.builds(lambda first, others: [first, *others], firsts, st.lists(pieces, max_size=2))
lists = st.lists(hosts, min_size=1, max_size=4)
names = st.lists(st.text("an019", min_size=1, max_size=4), min_size=1, max_size=30)


def text_of(piece: str | list[Range]) -> str:
    if isinstance(piece, str):
        return piece
    return (
        "["
        + ",".join(f"{low:0{width}}-{high}" if low < high else f"{low:0{width}}" for low, high, width in piece)
        + "]"
    )


def plainly(piece: str | list[Range]) -> list[str]:
    """The names that a piece stands for, one number after another."""
    if isinstance(piece, str):
        return [piece]
    return [str(number).rjust(width, "0") for low, high, width in piece for number in range(low, high + 1)]


@given(lists)
def test_a_node_list_is_what_counting_by_hand_gives(nodelist: list[list[str | list[Range]]]) -> None:
    text = ",".join("".join(map(text_of, host)) for host in nodelist)
    by_hand = ["".join(parts) for host in nodelist for parts in itertools.product(*map(plainly, host))]

    assert expand_nodelist(text) == by_hand


@given(names)
def test_a_folded_list_of_names_unfolds_to_the_same_names_in_the_same_order(hosts: list[str]) -> None:
    assert expand_nodelist(compress_nodelist(hosts)) == hosts


@pytest.mark.parametrize(
    ("hosts", "folded"),
    [
        (["n08", "n09", "n10", "a"], "n[08-10],a"),
        (["n1", "n2", "n5"], "n[1-2,5]"),
        (["n9", "n10"], "n[9-10]"),
        (["n09", "n010"], "n[09,010]"),
        (["n2", "n1"], "n[2,1]"),
        (["r1n1-ib", "r1n2-ib"], "r1n1-ib,r1n2-ib"),
        (["login"], "login"),
    ],
)
def test_numbers_at_the_end_of_names_are_folded_as_slurm_folds_them(hosts: list[str], folded: str) -> None:
    assert compress_nodelist(hosts) == folded


@pytest.mark.skipif(not shutil.which("scontrol"), reason="no Slurm here")
def test_scontrol_reads_a_folded_list_as_we_do(tmp_path: Path) -> None:
    hosts = [
        "n08",
        "n09",
        "n10",
        "a",
        "n09",
        "n010",
        "n2",
        "n1",
        "r1n1-ib",
        "r1n2-ib",
        "r1n1",
        "r1n2",
        "r2n1",
        "x",
        "n98",
        "n99",
        "n100",
    ]
    (tmp_path / "slurm.conf").write_text("ClusterName=a\nSlurmctldHost=localhost\nNodeName=n1\n")

    said = subprocess.run(
        ["scontrol", "show", "hostnames", compress_nodelist(hosts)],
        env={**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout.split() == hosts


def test_a_hundred_thousand_hosts_are_named_placed_and_folded() -> None:
    nodelist, tasks = "n[000001-100000]", "8(x100000)"

    found = from_slurm({"SLURM_JOB_NODELIST": nodelist, "SLURM_TASKS_PER_NODE": tasks}, None)

    assert [host.name for host in found.hosts] == [f"n{number:06d}" for number in range(1, 100_001)]
    assert found.place(799_999) == (799_999, 99_999, "n100000", 7, None)
    assert hostfile_text(found, OPEN_MPI_5).splitlines()[-1] == "n100000 slots=8"
    assert compress_nodelist(host.name for host in found.hosts) == nodelist


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_the_rank_map_and_one_ranks_place_are_the_same(ranks: list[int]) -> None:
    uneven = Allocation("slurm", tuple(Host(f"n{number}", count, count, 0) for number, count in enumerate(ranks)))
    by_hand = [(node, local) for node, count in enumerate(ranks) for local in range(count)]

    assert [(place.node, place.local_rank) for place in uneven.rank_map()] == by_hand
    assert [uneven.place(rank) for rank in range(uneven.world_size)] == uneven.rank_map()


def command(allocation: Allocation, dialect: Dialect, environ: dict[str, str], *more: str) -> list[str]:
    options = Namespace(forward=[], secret=[], ssh=None, wdir=None, bind_to="none", nic=None, mpirun_arg=more)
    return launch_command(options, Mpirun("/opt/mpirun", dialect), allocation, ["python"], ATTEMPT, environ)


@pytest.mark.parametrize("dialect", [OPEN_MPI_4, OPEN_MPI_5, HYDRA], ids=lambda dialect: dialect.name)
def test_no_argument_and_no_variable_grows_with_the_nodes(dialect: Dialect) -> None:
    environ = mpirun_environment({"SLURM_JOB_ID": "1", "PATH": "/bin"}, ALL, None, lambda _: True)

    words = [*command(ALL, dialect, environ), *(f"{name}={text}" for name, text in environ.items())]

    assert environ["SLURM_JOB_NODELIST"] == "gpu[00001-10000]"
    assert max(map(len, words)) < 4096
    assert hostfile_text(ALL, dialect).count("\n") == NODES


@pytest.mark.parametrize("dialect", [OPEN_MPI_4, OPEN_MPI_5, HYDRA], ids=lambda dialect: dialect.name)
def test_names_that_mpirun_could_not_pass_to_srun_are_refused_before_it_starts(dialect: Dialect) -> None:
    long = Allocation("slurm", tuple(host._replace(name=f"long-name-{host.name}") for host in ALL.hosts))

    with pytest.raises(RequestError, match=r"10,000 hosts to srun in one argument of 189,999 bytes.* --mpirun-arg=-"):
        command(long, dialect, {})

    assert command(long, dialect, {}, *dialect.by_ssh)
    assert len(",".join(host.name for host in ALL.hosts)) < LONGEST_ARGUMENT


def test_the_shown_map_of_many_ranks_has_its_two_ends() -> None:
    lines = ALL.table(longest=4)

    assert [line.split()[0] for line in lines] == ["rank", "0", "1", "…", "79998", "79999"]
    assert "(79996 more)" in lines[3]


def test_ranks_speak_more_seldom_where_there_are_very_many_and_often_enough_for_both_sides() -> None:
    assert beat_every(16_384) == BEAT_EVERY
    assert BEAT_EVERY < beat_every(80_000) < SILENCE / 2 < FENCE / 2


@pytest.mark.parametrize(("part", "nodes", "most"), [("plan", NODES, 100), ("records", 10, 100)])
def test_what_the_launcher_takes_is_measured_and_its_memory_small(part: str, nodes: int, most: int) -> None:
    benchmark = [
        sys.executable,
        str(ROOT / "tests/benchmark_scale.py"),
        "--one",
        "--parts",
        part,
        "--nodes",
        str(nodes),
    ]

    done = subprocess.run(
        benchmark, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )

    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seconds"] > 0
    assert found["megabytes"] < most


def test_too_few_descriptors_for_the_ranks_are_an_error_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))

    with pytest.raises(LauncherError, match=r"needs 80,064 open files, one for each rank, and may have 4,096"):
        Listener("127.0.0.1", 80_000)


def test_records_come_to_the_file_in_their_order_once_they_are_flushed(tmp_path: Path) -> None:
    records = Records(tmp_path / "ranks.jsonl", {})
    told = [{"state": state, "rank": rank} for state in STATES[:2] for rank in range(3)]
    for record in [*told, {"state": "failed", "rank": 0}]:
        records.add(record)

    assert read_records(tmp_path) == []
    records.flush()
    assert read_records(tmp_path) == told
    assert (records.count("started"), records.count("failed"), records.ended) == (3, 0, {0, 1, 2})
    records.close()
