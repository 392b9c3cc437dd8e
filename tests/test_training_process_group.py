"""How ranks find each other."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from training.process_group import wait_for_listener


@pytest.fixture
def master() -> Iterator[socket.socket]:
    """A socket with a port of its own that nobody listens at yet."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def test_a_rank_that_comes_before_rank_zero_goes_on_soon_after_it_listens(master: socket.socket):
    listens = threading.Timer(0.3, master.listen)
    listens.start()
    began = time.monotonic()
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
