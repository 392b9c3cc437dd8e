"""The store of the ranks: torch's interface, and nobody without the token."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from conftest import ROOT, Mpi
from training.joining import store_for_nccl
from training.ranks import RankInfo
from training.store import LONGEST_PROOF, STRANGERS, Server, Store, connect, listen, proof
from waiting import wait_until

TOKEN = "known to the ranks"
SOON = timedelta(seconds=20)


@pytest.fixture
def server() -> Server:
    return Server("127.0.0.1", 0, TOKEN, alone=True)


@pytest.fixture
def store(server: Server) -> Store:
    return Store("127.0.0.1", server.port, TOKEN, SOON)


@contextmanager
def strangers(address: str, *ports: int) -> Iterator[None]:
    """Another user at these ports, for as long as the context lasts."""
    command = [sys.executable, str(ROOT / "tests/strangers.py"), address, *map(str, ports)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield
        process.kill()


def test_a_value_is_what_any_rank_has_set_to_the_byte(server: Server, store: Store):
    other = dist.PrefixStore("training", Store("127.0.0.1", server.port, TOKEN, SOON))
    other.set("a", "é\n")
    assert store.get("training/a") == "é\n".encode()
    store.set("b", b"\0\xff")
    assert store.get("b") == b"\0\xff"
    assert store.delete_key("b")
    assert store.check(["training/a"])
    assert not store.check(["training/a", "b"])
    assert other.num_keys() == 1
    assert other.delete_key("a")
    assert not other.delete_key("a")


def test_ranks_count_together(store: Store):
    assert [store.add("n", 2), dist.PrefixStore("", store).add("n", 1), store.clone().add("m", -1)] == [2, 1, -1]
    assert store.get("n") == b"2"


@pytest.mark.parametrize(
    ("expected", "desired", "answer"), [("", "new", b"new"), ("other", "new", b"other")], ids=["none", "another"]
)
def test_compare_set_is_torchs_where_there_is_no_value(store: Store, expected: str, desired: str, answer: bytes):
    assert store.compare_set("a", expected, desired) == answer
    assert dist.HashStore().compare_set("a", expected, desired) == answer


def test_compare_set_sets_what_is_as_expected_and_tells_what_is_not(store: Store):
    store.set("a", "old")
    assert store.compare_set("a", "other", "new") == b"old"
    assert store.compare_set("a", "old", "new") == b"new"
    assert store.get("a") == b"new"


def test_a_rank_waits_for_a_key_until_another_sets_it(server: Server, store: Store):
    read: list[bytes] = []
    waits = threading.Thread(target=lambda: read.append(Store("127.0.0.1", server.port, TOKEN, SOON).get("late")))
    waits.start()
    store.set("early", "")
    store.set("late", "at last")
    waits.join(20)
    assert read == [b"at last"]


def test_a_wait_ends_in_time_and_a_late_answer_is_not_taken_for_the_next_one(store: Store):
    with pytest.raises(dist.DistStoreError, match="wait timeout after 50ms, keys: never"):
        store.wait(["never"], timedelta(seconds=0.05))
    store.clone().set("never", "after all")
    assert store.get("never") == b"after all"


def test_ranks_come_before_rank_zero_listens_and_wait_no_longer_than_they_were_told():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(dist.DistNetworkError, match=rf"validate to host 127.0.0.1:{port} within 0.1 s .*refused"):
            connect("127.0.0.1", port, TOKEN, 0.1)
        assert time.monotonic() - began < 10
    later = threading.Timer(0.2, lambda: Server("127.0.0.1", port, TOKEN, alone=True))
    later.start()
    connect("127.0.0.1", port, TOKEN, 20.0).close()


def test_an_address_that_is_none_is_named():
    with pytest.raises(dist.DistNetworkError, match=r"MASTER_ADDR=256\.0\.0\.1"):
        connect("256.0.0.1", 5001, TOKEN, 600.0)


def test_a_rank_of_another_run_never_joins(server: Server):
    with pytest.raises(dist.DistNetworkError, match="failed to connect/validate"):
        connect("127.0.0.1", server.port, "of another run", 0.3)


def test_a_rank_does_not_join_who_only_says_that_it_is_the_store():
    """Whoever took the port before rank 0 learns nothing by which it could join the run."""
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def pose() -> None:
            connection, _ = impostor.accept()
            connection.sendall(b'{"nonce": "0"}\n')
            heard.append(json.loads(connection.makefile().readline()))
            connection.sendall(json.dumps({"proof": heard[0]["proof"]}).encode() + b"\n")

        poses = threading.Thread(target=pose)
        poses.start()
        with pytest.raises(dist.DistNetworkError, match="failed to connect/validate"):
            connect("127.0.0.1", impostor.getsockname()[1], TOKEN, 0.2)
        poses.join(20)
    assert TOKEN not in str(heard)
    assert heard[0]["proof"] != proof(TOKEN, "store", "0", heard[0]["nonce"])


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"nonce": "0", "proof": "0"}\n',
        b'{"nonce": "0", "proof": "\xc3\xa9"}\n',
        b'{"nonce": 0, "proof": null}\n',
        b"[]\n",
        b"[" * 50_000 + b"\n",
        b"x" * (LONGEST_PROOF + 1),
        b'{"do": "get", "key": "a", "number": 1}\n',
    ],
)
def test_who_proves_nothing_is_shown_the_door_and_nothing_else(server: Server, store: Store, words: bytes):
    store.set("a", "secret")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as stranger:
        stranger.sendall(words)
        heard = b""
        try:
            while chunk := stranger.recv(1000):
                heard += chunk
        except ConnectionResetError:
            pass
    assert heard == b"" or list(json.loads(heard)) == ["nonce"]
    assert store.get("a") == b"secret"


def test_more_strangers_than_the_store_bears_end_the_oldest_and_no_rank(server: Server, store: Store):
    crowd = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(STRANGERS + 1)]
    crowd[0].makefile().readline()
    assert crowd[0].recv(1) == b""
    store.set("a", "still here")
    assert store.clone().get("a") == b"still here"
    for stranger in crowd:
        stranger.close()


@pytest.mark.parametrize(
    ("address", "alone", "listens"),
    [("127.0.0.1", True, "127.0.0.1"), ("127.0.0.1", False, "0.0.0.0"), ("192.0.2.1", True, "0.0.0.0")],
    ids=["one host", "a host that knows its own name by loopback alone", "an address that is not this host's own"],
)
def test_the_store_listens_on_the_jobs_interface(address: str, alone: bool, listens: str):
    with listen(address, 0, alone) as listener:
        assert listener.getsockname()[0] == listens


RANKS_THAT_TALK = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch, torch.distributed as dist
from pathlib import Path
from training.joining import Joining
from training.process_group import leave
from training.ranks import RankInfo

ranks = RankInfo.from_env(os.environ)
while ranks.rank and not Path("go").exists():
    time.sleep(0.01)
_, store = Joining(ranks, lambda: "cpu").finish()
value = torch.ones(1)
for number in range(100):
    dist.all_reduce(value)
    store.set(f"{{number}}/{{ranks.rank}}", str(number))
    assert store.get(f"{{number}}/{{1 - ranks.rank}}") == str(number).encode()
    value /= 2
print("all is well", value.item(), os.environ["MASTER_PORT"])
leave()
"""


def test_nccl_gets_a_store_of_torchs_own_on_the_same_interface(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    stores: dict[int, dist.Store] = {}

    def join(rank: int) -> None:
        ranks = RankInfo("mpirun", rank, 2, rank, 2)
        stores[rank] = store_for_nccl(ranks, Store("127.0.0.1", server.port, TOKEN, SOON))

    ranks = [threading.Thread(target=join, args=(rank,)) for rank in (1, 0)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    stores[1].set("unique id", "7\0")
    assert stores[0].get("unique id") == b"7\0"
    told = Store("127.0.0.1", server.port, TOKEN, SOON).get("nccl").split()[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(told)))


def test_without_a_token_all_use_torchs_store():
    torchs = dist.HashStore()
    assert store_for_nccl(RankInfo("single"), torchs) is torchs


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_run_joins_and_goes_on_while_another_user_floods_its_ports(mpi: Mpi, tmp_path: Path):
    (tmp_path / "program.py").write_text(RANKS_THAT_TALK)
    command = [sys.executable, "-m", "cluster.launch", "--cluster", "local", "--mpirun", str(mpi.mpirun)]
    launch = subprocess.Popen(
        [*command, "--nodes", "1", "--ranks-per-node", "2", "--", "python", "program.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    path = tmp_path / "outputs/program/attempt-0001/plan.json"
    wait_until(path.exists, 120.0)
    plan = json.loads(path.read_text())
    with strangers(plan["master_addr"], plan["master_port"], plan["launcher"][1]):
        (tmp_path / "go").touch()
        output, _ = launch.communicate(timeout=120)
    assert launch.returncode == 0, output
    assert f"all is well 1.0 {plan['master_port']}" in output
