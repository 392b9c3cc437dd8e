"""How ranks find each other."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from conftest import ROOT
from training.errors import InputError
from training.joining import Joining, wait_for_listener
from training.ranks import RankInfo


@pytest.fixture
def master() -> Iterator[socket.socket]:
    """A socket with a port of its own that nobody listens at yet."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def test_a_rank_that_comes_before_rank_zero_goes_on_soon_after_it_listens(master: socket.socket):
    listens = threading.Timer(0.3, master.listen)
    began = time.monotonic()
    listens.start()
    wait_for_listener("127.0.0.1", master.getsockname()[1], 20.0)
    assert 0.2 < time.monotonic() - began < 10.0


def test_a_rank_waits_for_rank_zero_no_longer_than_it_was_told(master: socket.socket):
    began = time.monotonic()
    wait_for_listener("127.0.0.1", master.getsockname()[1], 0.1)
    assert 0.1 <= time.monotonic() - began < 10.0


def test_an_address_that_cannot_be_reached_is_left_to_the_rendezvous_to_report():
    began = time.monotonic()
    wait_for_listener("256.0.0.1", 5001, 600.0)
    assert time.monotonic() - began < 60.0


def test_the_device_is_chosen_and_warm_when_joining_is_finished():
    device, store = Joining(RankInfo("single"), lambda: "cpu").finish()
    assert (device.type, store) == ("cpu", None)


def test_a_rank_without_its_device_says_so_where_the_main_thread_finishes():
    def choose() -> str:
        raise InputError("torch sees no GPU")

    with pytest.raises(InputError, match="torch sees no GPU"):
        Joining(RankInfo("single"), choose).finish()


def test_the_main_thread_goes_on_while_the_device_is_chosen():
    imported = threading.Event()

    def choose() -> str:
        return "cpu" if imported.wait(20.0) else "meta"

    joining = Joining(RankInfo("single"), choose)
    imported.set()
    assert joining.finish()[0].type == "cpu"


def test_a_rank_that_cannot_import_does_not_stay_for_the_others():
    """Threads that are no daemons would be awaited at the end of the process."""
    rank = "import os; from training.joining import Joining; from training.ranks import RankInfo\n"
    rank += "os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '1'}\n"
    rank += "Joining(RankInfo('mpirun', 1, 2, 1, 2), lambda: 'cpu'); raise ImportError('no transformers')"
    done = subprocess.run([sys.executable, "-c", rank], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stderr.endswith("ImportError: no transformers\n")
