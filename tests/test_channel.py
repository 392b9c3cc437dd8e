"""The line between launcher and ranks: who may speak on it, and how each side knows that the other is there."""

import json
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import channel
from cluster.channel import ACCEPTED_AT_ONCE, LONGEST_GREETING, STRANGERS, Listener, Wire, connect, own_address
from cluster.errors import LauncherError
from waiting import wait_until


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener("127.0.0.1")
    yield listener
    listener.close()


def rank(listener: Listener, number: int = 0) -> Wire:
    wire = connect(listener.address, listener.port, listener.token, number)
    heard(listener, lambda _: number in listener.connected)
    return wire


def heard(listener: Listener, until: Any) -> list[tuple[int, dict[str, Any]]]:
    """All that is heard until a condition on it holds."""
    messages: list[tuple[int, dict[str, Any]]] = []

    def done() -> bool:
        messages.extend(listener.exchange(0.01))
        return bool(until(messages))

    wait_until(done)
    return messages


def told(wire: Wire) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []

    def done() -> bool:
        messages.extend(wire.receive())
        return bool(messages)

    wait_until(done)
    return messages


def test_words_arrive_whole_and_in_order_with_the_rank_that_said_them(listener: Listener) -> None:
    first, second = rank(listener, 0), rank(listener, 1)
    first.send({"say": "x" * 900_000})  # more than a socket takes at once: the rest goes out while it listens
    first.send({"say": "after"})
    second.send({"say": "é\n"})

    messages = heard(listener, lambda seen: first.receive() == [] and len(seen) == 3)

    assert [message for number, message in messages if number == 0] == [{"say": "x" * 900_000}, {"say": "after"}]
    assert [message for number, message in messages if number == 1] == [{"say": "é\n"}]


def test_what_the_launcher_tells_reaches_those_it_is_for(listener: Listener) -> None:
    first, second = rank(listener, 0), rank(listener, 1)

    listener.tell({"do": "stop"}, [1])
    listener.tell({"do": "warn"})

    assert told(second)[0] == {"do": "stop"}
    assert told(first)[0] == {"do": "warn"}


def test_the_end_of_a_connection_is_heard_with_its_rank(listener: Listener) -> None:
    rank(listener, 3).close()

    assert heard(listener, bool) == [(3, {"closed": True})]
    assert listener.connected == set()


def test_of_those_that_are_called_the_same_rank_the_end_of_the_last_is_the_ranks(listener: Listener) -> None:
    first, second, last = (rank(listener, 0) for _ in range(3))
    heard(listener, lambda _: len(listener._rank_of) == 3)

    for left, wire, ends in ((2, first, []), (1, last, [(0, {"closed": True})]), (0, second, [])):
        wire.close()
        assert heard(listener, lambda _, left=left: len(listener._rank_of) == left) == ends


@pytest.mark.parametrize(
    "words",
    [
        b'{"token": "wrong", "rank": 0}\n',
        b'{"rank": 0}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1, 2]\n",
        b"\xff\xfe\n",
        b"x" * (LONGEST_GREETING + 1),
        b"[" * 60_000 + b"\n",
    ],
    ids=["wrong token", "no token", "another protocol", "no object", "no text", "endless line", "deeply nested"],
)
def test_who_does_not_know_the_token_is_shown_the_door(listener: Listener, words: bytes) -> None:
    stranger = socket.create_connection((listener.address, listener.port))
    sender = threading.Thread(target=lambda: _send(stranger, words))
    sender.start()
    gone: list[bytes] = []

    def closed() -> bool:
        assert listener.exchange(0.01) == []
        stranger.settimeout(0.01)
        try:
            gone.append(stranger.recv(1))
        except TimeoutError:
            return False
        except OSError:
            gone.append(b"")
        return gone[-1] == b""

    wait_until(closed)
    sender.join()
    assert listener.connected == set()


def test_more_strangers_than_the_launcher_bears_end_the_oldest_and_no_rank(listener: Listener) -> None:
    wire = rank(listener, 0)
    strangers = []
    for number in range(STRANGERS + 10):
        strangers.append(socket.create_connection((listener.address, listener.port)))
        if number % 100 == 0:
            assert listener.exchange(0) == []
    heard(listener, lambda _: select.select(strangers[:1], [], [], 0)[0])

    wire.send({"say": "still here"})

    assert heard(listener, bool) == [(0, {"say": "still here"})]
    assert strangers[0].recv(1) == b""
    for stranger in strangers:
        stranger.close()


def test_a_stranger_who_speaks_as_a_flood_of_others_ends_it_does_not_end_the_launcher(listener: Listener) -> None:
    listener.exchange(0)
    strangers = [socket.create_connection((listener.address, listener.port)) for _ in range(STRANGERS)]
    heard(listener, lambda _: len(listener._strangers) == STRANGERS)
    flood = [socket.create_connection((listener.address, listener.port)) for _ in range(ACCEPTED_AT_ONCE)]
    for stranger in strangers[:ACCEPTED_AT_ONCE]:
        stranger.sendall(b"{")

    heard(listener, lambda _: select.select(strangers[:1], [], [], 0)[0])

    for one in (*strangers, *flood):
        one.close()


def test_of_heartbeats_that_have_waited_the_newest_alone_is_heard_and_every_other_word(listener: Listener) -> None:
    wire = rank(listener, 0)
    for step in range(3):
        wire.send({"beat": {"step": step}, "state": "R"})
    wire.send({"record": {"state": "complete"}})
    wire.send({"beat": None})
    wire.send({"beat": {"step": 3}})

    assert heard(listener, bool) == [(0, {"record": {"state": "complete"}}), (0, {"beat": {"step": 3}})]


def test_last_words_are_heard_also_where_the_rank_is_told_something_when_it_has_gone(listener: Listener) -> None:
    wire = rank(listener, 0)
    wire.send({"say": "last words"})
    wire.close()
    [of_rank] = listener._ranks.values()

    def has_failed() -> bool:
        of_rank.keep_alive()
        return of_rank.closed

    wait_until(has_failed)

    assert heard(listener, lambda seen: len(seen) == 2) == [(0, {"say": "last words"}), (0, {"closed": True})]


def test_a_wire_knows_that_words_wait_for_its_peer() -> None:
    one, other = map(Wire, socket.socketpair())
    seen = []

    for text in ("a word", "x" * 1_000_000):
        one.send({"say": text})
        seen.append(one.waits)
    wait_until(lambda: other.receive() + one.receive() == [] and not one.waits)

    assert seen == [False, True]
    one.close()
    other.close()


def _send(stranger: socket.socket, words: bytes) -> None:
    try:
        stranger.sendall(words)
    except OSError:
        pass


def test_a_rank_that_does_not_read_does_not_hold_the_launcher_up(listener: Listener) -> None:
    silent = rank(listener, 0)
    words: list[dict[str, Any]] = []

    for _ in range(200):
        listener.tell({"do": "x" * 100_000})  # more than both sockets take: the rest waits with the launcher

    def all_have_come() -> bool:
        listener.tell({})
        words.extend(word for word in silent.receive() if word)
        return len(words) == 200

    wait_until(all_have_come)


def test_the_launcher_is_heard_while_its_main_thread_waits_for_a_disk(listener: Listener) -> None:
    wire = rank(listener, 0)

    with listener.keep_alive():
        assert told(wire)[0] == {}


def test_a_launcher_that_is_not_there_is_an_error_within_the_time_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    with pytest.raises(ConnectionRefusedError):
        connect("127.0.0.1", port, "token", 0, seconds=0.3)


def test_hosts_that_are_all_this_machine_are_reached_by_loopback_and_others_by_the_way_to_them() -> None:
    assert own_address(["a", "b"], lambda host: True, None) == "127.0.0.1"
    assert own_address(["a", "127.0.0.2"], lambda host: host == "a", None) == "127.0.0.1"
    assert own_address(["a", "127.0.0.2"], lambda host: host == "a", "lo") == "127.0.0.1"


def test_a_message_is_one_line_of_json(listener: Listener) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    wire = connect("127.0.0.1", server.getsockname()[1], "secret", 7)
    accepted, _ = server.accept()

    assert json.loads(accepted.makefile().readline()) == {"token": "secret", "rank": 7}
    wire.close()


def test_a_stranger_that_says_nothing_is_shown_the_door_after_a_while(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "CONNECT_WITHIN", 0.0)

    with socket.create_connection((listener.address, listener.port)) as stranger:
        heard(listener, lambda _: select.select([stranger], [], [], 0)[0])
        assert stranger.recv(1) == b""


def test_more_ranks_than_the_system_allows_open_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))

    with pytest.raises(LauncherError, match=r"needs 100,064 open files, one for each rank, and may have 4,096"):
        Listener("127.0.0.1", 100_000)


def test_hosts_whose_names_nobody_knows_need_the_name_of_their_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    with pytest.raises(LauncherError, match=r"neither n1 nor this host has an address by its name: .* --nic"):
        own_address(["n1", "n2"], lambda host: False, None)
