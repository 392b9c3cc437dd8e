"""The line between the launcher and the watcher of every rank: TCP, one JSON object a line.

Over it ranks say that they began, that they still live and how far they are, and how they ended; the launcher tells
them to warn, to show their stacks, to stop. It also is how each side knows that the other is there: mpirun may notice
a dead node only after minutes, and a shared file system says nothing about a node that was cut off.
"""

import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from cluster.errors import LauncherError
from cluster.machine import interface_address

BEAT_EVERY = 1.0
"""Seconds between two words from either side while there is nothing else to say."""
WORDS_A_SECOND = 30_000
"""Heartbeats that the launcher takes in a second on part of one core (`tests/benchmark_scale.py`)."""
FENCE = 10.0
"""Seconds without a word from the launcher after which a rank stops by itself: cut off, it must not go on for long
beside the attempt that takes its place."""
CONNECT_WITHIN = 30.0
"""Seconds in which a rank must have reached the launcher."""
OTHER_FILES = 64
"""Descriptors of the launcher beside the connections."""
NAMES_TRIED = 3
"""Hosts by whose names the way to them is looked for: a site's Slurm may know nodes by names that nobody resolves."""
ALL_STACKS = 1 << 26
"""Letters of the stacks of all ranks that are asked, of which each has an equal share: they are held at once."""
LONGEST_LINE = 1 << 20
"""Bytes of one message; a peer that sends more is not ours."""
STRANGERS = 1024
"""Connections that have not shown the token yet; of more than these the oldest is closed."""
LONGEST_GREETING = 256
"""Bytes by which a stranger must have shown it."""
HEARTBEAT = b'{"beat": '
"""How the line of a heartbeat begins."""
ACCEPTED_AT_ONCE = 64
"""Connections taken before ranks are heard again: a flood of them must not make the launcher deaf."""


def beat_every(ranks: int) -> float:
    """Seconds between two words from either side: where there are very many ranks, each speaks more seldom."""
    return max(BEAT_EVERY, ranks / WORDS_A_SECOND)


class Wire:
    """One end of a connection. Sending never blocks: what the peer does not take yet waits here."""

    def __init__(self, connection: socket.socket, longest: int = LONGEST_LINE) -> None:
        connection.setblocking(False)
        self.socket, self.longest = connection, longest
        self.closed = False
        self._incoming = b""
        self._outgoing = b""
        self._lock = threading.Lock()

    @property
    def waits(self) -> bool:
        """Whether words are left that the peer has not taken."""
        return bool(self._outgoing)

    def send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._outgoing += json.dumps(message).encode() + b"\n"
            self._flush()

    def keep_alive(self) -> None:
        """A word without content, unless others still wait to be taken."""
        with self._lock:
            self._outgoing = self._outgoing or b"{}\n"
            self._flush()

    def receive(self) -> list[dict[str, Any]]:
        """The whole messages that have come; sets `closed` at the end of the connection or of the peer's sense.

        What the peer said before it went is heard also where a word to it has failed meanwhile. Of several heartbeats
        only the newest is: so a launcher that is behind catches up, and what it holds at once stays small.
        """
        try:
            while len(self._incoming) <= self.longest:
                if not (chunk := self.socket.recv(65536)):
                    self.closed = True
                    break
                self._incoming += chunk
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        with self._lock:
            self._flush()
        *lines, self._incoming = self._incoming.split(b"\n")
        try:
            messages = [json.loads(line) for line in without_overtaken(lines)]
        except (ValueError, RecursionError):
            messages, self.closed = [], True
        if (not lines and len(self._incoming) > self.longest) or not all(
            isinstance(message, dict) for message in messages
        ):
            messages, self.closed = [], True
        return messages

    def close(self) -> None:
        self.closed = True
        self.socket.close()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self.socket.send(self._outgoing) :]
        except BlockingIOError:
            pass
        except OSError:
            self.closed, self._outgoing = True, b""


class Listener:
    """The launcher's end: the wires of all ranks that have shown the attempt's token."""

    def __init__(self, address: str, ranks: int = 1) -> None:
        """Raises `LauncherError` where the system allows fewer connections than there will be ranks."""
        family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
        _allow_descriptors(ranks + OTHER_FILES)
        self._server = socket.create_server((address, 0), family=family, backlog=4096)
        self._server.setblocking(False)
        self.address, self.port = address, int(self._server.getsockname()[1])
        self.token = os.urandom(16).hex()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, None)
        self._strangers: dict[Wire, float] = {}
        self._ranks: dict[int, Wire] = {}
        self._rank_of: dict[Wire, int] = {}

    @property
    def connected(self) -> set[int]:
        """Ranks whose connection is open."""
        return set(self._ranks)

    def exchange(self, seconds: float) -> list[tuple[int, dict[str, Any]]]:
        """What ranks said, each with its rank, waiting at most so long for the first word.

        The end of a connection is the message ``{"closed": True}``; a word without content is ``{}``.
        """
        heard: list[tuple[int, dict[str, Any]]] = []
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._accept()
            elif key.data in self._rank_of or key.data in self._strangers:  # else dropped since the selection
                heard += self._hear(key.data)
        for wire in [wire for wire, since in self._strangers.items() if time.monotonic() - since > CONNECT_WITHIN]:
            self._drop(wire)
        return heard

    def tell(self, message: Mapping[str, Any], ranks: Iterable[int] | None = None) -> None:
        """Send to these ranks, or to all."""
        for rank in list(self._ranks) if ranks is None else ranks:
            if wire := self._ranks.get(rank):
                wire.send(message)

    @contextmanager
    def keep_alive(self, every: float = BEAT_EVERY) -> Iterator[None]:
        """A thread that tells every rank, so often, that the launcher lives, also while a file system makes it wait."""
        over = threading.Event()

        def speak() -> None:
            while not over.wait(every):
                for wire in list(self._ranks.values()):
                    wire.keep_alive()

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        try:
            yield
        finally:
            over.set()
            speaker.join()

    def close(self) -> None:
        for wire in [*self._ranks.values(), *self._strangers]:
            wire.close()
        self._selector.close()
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):  # nobody is waiting any more; or the process has no descriptor left, and they wait
            for _ in range(ACCEPTED_AT_ONCE):
                connection, _ = self._server.accept()
                wire = Wire(connection, LONGEST_GREETING)
                self._strangers[wire] = time.monotonic()
                self._selector.register(connection, selectors.EVENT_READ, wire)
                if len(self._strangers) > STRANGERS:
                    self._drop(next(iter(self._strangers)))

    def _hear(self, wire: Wire) -> list[tuple[int, dict[str, Any]]]:
        messages = wire.receive()
        if wire in self._strangers and messages:
            first = messages.pop(0)
            if first.get("token") != self.token or not isinstance(first.get("rank"), int):
                self._drop(wire)
                return []
            del self._strangers[wire]
            wire.longest = LONGEST_LINE
            self._ranks[first["rank"]], self._rank_of[wire] = wire, first["rank"]
        rank = self._rank_of.get(wire)
        if wire.closed:
            self._drop(wire)
        if rank is None:
            return []
        if wire.closed:
            del self._rank_of[wire]
            if self._ranks.get(rank) is wire:  # else a later one has taken its place, as where mpirun calls two rank 0
                del self._ranks[rank]
                messages.append({"closed": True})
        return [(rank, message) for message in messages]

    def _drop(self, wire: Wire) -> None:
        self._strangers.pop(wire, None)
        self._selector.unregister(wire.socket)
        wire.close()


def without_overtaken(lines: Sequence[bytes]) -> list[bytes]:
    """The lines but those heartbeats that a later one follows."""
    beats = [number for number, line in enumerate(lines) if line.startswith(HEARTBEAT)]
    overtaken = set(beats[:-1])
    return [line for number, line in enumerate(lines) if number not in overtaken]


def _allow_descriptors(wanted: int) -> None:
    """One connection per rank: the usual limit of 1024 descriptors is for programs that know no better."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < wanted:
        raise LauncherError(
            f"the launcher needs {wanted:,} open files, one for each rank, and may have {most:,} (ulimit -Hn): "
            "let the site raise LimitNOFILE of slurmd"
        )
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def connect(address: str, port: int, token: str, rank: int, seconds: float = CONNECT_WITHIN) -> Wire:
    """The rank's end. Raises OSError where the launcher cannot be reached within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=max(0.1, deadline - time.monotonic()))
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = Wire(connection)
    wire.send({"token": token, "rank": rank})
    return wire


def own_address(hosts: Iterable[str], is_here: Callable[[str], bool], nic: str | None) -> str:
    """The address under which those hosts reach this machine: the interface's, else the one that faces them.

    Loopback where all of them are this machine.
    """
    others = [host for host in hosts if not is_here(host)]
    if not others:
        return "127.0.0.1"
    if nic:
        with suppress(OSError):  # Open MPI also takes lists and networks
            return interface_address(nic)
    for host in [*others[:NAMES_TRIED], socket.gethostname()]:
        with suppress(OSError):
            family, kind, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(there)  # sends nothing: the kernel only chooses the way
                return str(probe.getsockname()[0])
    raise LauncherError(f"neither {others[0]} nor this host has an address by its name: name their network with --nic")
