"""The store in which ranks leave each other messages: torch's interface, for those alone who know the run's token.

torch's own, TCPStore, listens on every interface and asks nobody who he is: any user of the cluster may list, read and
overwrite its keys. Here rank 0 listens on the job's interface, and both sides first prove that they know the token,
without saying it. Then a connection carries requests and answers in turn, one JSON object a line; values travel as
Latin-1 text.

https://docs.pytorch.org/docs/stable/distributed.html#distributed-key-value-store
"""

import errno
import hmac
import json
import os
import selectors
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from training.teardown import keep_until_the_end

STRANGERS = 256
"""Connections that have not proved themselves yet; of more than these the oldest is closed."""
PROVE_WITHIN = 10.0
"""Seconds for the proof."""
LONGEST_PROOF = 512
"""Bytes of it."""
PAUSE_AFTER_A_STRANGER = 0.001
"""Seconds: who floods the port takes so much of rank 0's time and no more."""

Request = dict[str, Any]


class Server:
    """Rank 0's side: a thread that holds the keys."""

    def __init__(self, address: str, port: int, token: str, alone: bool) -> None:
        """Listen at once. `alone`: all ranks are on this host.

        Raises:
            OSError: the port is taken, or the address is none.
        """
        self._listener = listen(address, port, alone)
        self._listener.setblocking(False)
        self._token = token
        self._keys: dict[str, str] = {}
        self._parked: dict[str, list[tuple[_Connection, Request]]] = {}
        self._strangers: list[_Connection] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        threading.Thread(target=self._serve, name="store", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _serve(self) -> None:
        while True:
            for key, events in self._selector.select(1.0):
                if key.data is None:
                    self._accept()
                elif key.data.socket.fileno() < 0:
                    continue  # refused a moment ago
                elif events & selectors.EVENT_WRITE:
                    self._flush(key.data)
                else:
                    self._hear(key.data)
            while self._strangers and time.monotonic() - self._strangers[0].since > PROVE_WITHIN:
                self._refuse(self._strangers[0])

    def _accept(self) -> None:
        try:
            connection = _Connection(self._listener.accept()[0])
        except OSError:  # it has gone again, or this process has no descriptor left
            time.sleep(PAUSE_AFTER_A_STRANGER)
            return
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._strangers.append(connection)
        self._say(connection, {"nonce": connection.nonce})
        if len(self._strangers) > STRANGERS:
            self._refuse(self._strangers[0])

    def _hear(self, connection: "_Connection") -> None:
        try:
            for line in connection.receive():
                act = self._carry_out if connection.proved else self._greet
                act(connection, json.loads(line))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._refuse(connection)

    def _greet(self, connection: "_Connection", told: Request) -> None:
        """Let it in where its proof is right. Raises ValueError where it is not."""
        if not hmac.compare_digest(told["proof"], proof(self._token, "rank", connection.nonce, told["nonce"])):
            raise ValueError("another token")
        connection.proved = True
        self._strangers.remove(connection)
        self._say(connection, {"proof": proof(self._token, "store", connection.nonce, told["nonce"])})

    def _refuse(self, connection: "_Connection") -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        connection.request = None
        if not connection.proved:
            self._strangers.remove(connection)
            time.sleep(PAUSE_AFTER_A_STRANGER)

    def _carry_out(self, connection: "_Connection", request: Request) -> None:
        """Answer a request now, or when the key is set that it waits for."""
        connection.request = request
        key = request.get("key", "")
        answer: Any = None
        match request["do"]:
            case "set":
                self._set(key, request["value"])
            case "add":
                answer = int(self._keys.get(key, "0")) + request["value"]
                self._set(key, str(answer))
            case "compare_set":
                answer = self._keys.get(key, request["expected"])
                if answer == request["expected"] and (key in self._keys or not answer):
                    answer = request["value"]
                    self._set(key, answer)
            case "get" | "wait":
                missing = next((name for name in request.get("keys", [key]) if name not in self._keys), None)
                if missing is not None:
                    self._parked.setdefault(missing, []).append((connection, request))
                    return
                answer = self._keys[key] if request["do"] == "get" else None
            case "check":
                answer = all(name in self._keys for name in request["keys"])
            case "delete":
                answer = self._keys.pop(key, None) is not None
            case "count":
                answer = len(self._keys)
        self._say(connection, {"number": request["number"], "answer": answer})

    def _set(self, key: str, value: str) -> None:
        self._keys[key] = value
        for connection, request in self._parked.pop(key, []):
            if connection.request is request:  # it has not given up meanwhile
                self._carry_out(connection, request)

    def _say(self, connection: "_Connection", message: Request) -> None:
        connection.outgoing += _line(message)
        self._flush(connection)

    def _flush(self, connection: "_Connection") -> None:
        with suppress(OSError):  # it takes no more now; or it has gone, which reading will tell
            connection.outgoing = connection.outgoing[connection.socket.send(connection.outgoing) :]
        waits = selectors.EVENT_WRITE if connection.outgoing else 0
        self._selector.modify(connection.socket, selectors.EVENT_READ | waits, connection)


class _Connection:
    """What the server knows of one."""

    def __init__(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = accepted
        self.since = time.monotonic()
        self.nonce = os.urandom(16).hex()
        self.proved = False
        self.request: Request | None = None
        """The last one."""
        self.outgoing = b""
        self._incoming = b""

    def receive(self) -> list[bytes]:
        """The whole lines that have come.

        Raises:
            OSError: the connection has ended.
            ValueError: a proof has no end.
        """
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionResetError
        *lines, self._incoming = (self._incoming + chunk).split(b"\n")
        if not self.proved and len(self._incoming) + sum(map(len, lines)) > LONGEST_PROOF:
            raise ValueError("an endless proof")
        return lines


class Store(dist.Store):
    """A rank's side. One request at a time; `clone` is for who must not wait for another thread's."""

    timeout: timedelta

    def __init__(self, address: str, port: int, token: str, timeout: timedelta) -> None:
        """Connect, as soon as rank 0 listens.

        Raises:
            DistNetworkError: nobody who knows the token answers there within `timeout`.
        """
        super().__init__()
        self.set_timeout(timeout)
        self._place = (address, port, token)
        self._lock = threading.Lock()
        self._asked = 0
        self._lines = connect(address, port, token, timeout.total_seconds())
        # torch's own references do not count: a store whose Python object has gone answers nobody.
        keep_until_the_end(self)

    def set(self, key: str, value: str | bytes) -> None:
        self._ask("set", key=key, value=_text(value))

    def get(self, key: str, timeout: timedelta | None = None) -> bytes:
        return bytes(self._ask("get", timeout, key=key).encode("latin-1"))

    def add(self, key: str, value: int) -> int:
        return int(self._ask("add", key=key, value=value))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        answer = self._ask("compare_set", key=key, expected=_text(expected), value=_text(desired))
        return bytes(answer.encode("latin-1"))

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        self._ask("wait", timeout, keys=keys)

    def check(self, keys: list[str]) -> bool:
        return bool(self._ask("check", keys=keys))

    def delete_key(self, key: str) -> bool:
        return bool(self._ask("delete", key=key))

    def num_keys(self) -> int:
        return int(self._ask("count"))

    # The names by which torch's own code asks a store that is written in Python.
    deleteKey = delete_key
    getNumKeys = num_keys

    def clone(self) -> "Store":
        return Store(*self._place, self.timeout)

    def _ask(self, do: str, timeout: timedelta | None = None, **words: Any) -> Any:
        seconds = (timeout or self.timeout).total_seconds()
        with self._lock:
            self._asked += 1
            try:
                self._lines.send({"do": do, "number": self._asked, **words}, seconds)
                while (answer := self._lines.receive())["number"] != self._asked:
                    pass  # of a request that was given up
            except TimeoutError:
                keys = ", ".join(words.get("keys", [words.get("key", "")]))
                raise dist.DistStoreError(f"wait timeout after {seconds * 1000:.0f}ms, keys: {keys}") from None
            except OSError as error:
                raise dist.DistNetworkError(f"Connection closed by the store of rank 0 ({error})") from error
        return answer["answer"]


class Lines:
    """JSON objects over a blocking connection, each with its time."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        """The first object must have come so many seconds from now."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._incoming = connection, b""
        self._deadline = time.monotonic() + seconds

    def send(self, message: Request, seconds: float) -> None:
        """Send it; what is received next must have come so many seconds from now."""
        self._deadline = time.monotonic() + seconds
        self._socket.settimeout(max(seconds, 0.001))
        self._socket.sendall(_line(message))

    def receive(self, longest: int | None = None) -> Request:
        """Raises OSError at the end of the connection, its subclass TimeoutError, and ValueError for what is no JSON
        object or longer than `longest` bytes."""
        while b"\n" not in self._incoming:
            self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionResetError("it has gone")
            self._incoming += chunk
            if longest is not None and len(self._incoming) > longest:
                raise ValueError("too long a line")
        line, _, self._incoming = self._incoming.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("no object")
        return message

    def close(self) -> None:
        self._socket.close()


def connect(address: str, port: int, token: str, seconds: float) -> Lines:
    """A connection whose two ends know the token, however much later the other one begins to listen.

    Raises:
        DistNetworkError: there was none within `seconds`.
    """
    deadline, pause, why = time.monotonic() + seconds, 0.01, ""
    while True:
        try:
            within = min(PROVE_WITHIN, max(deadline - time.monotonic(), 0.1))
            return _introduce(socket.create_connection((address, port), timeout=within), token, within)
        except socket.gaierror as error:
            raise dist.DistNetworkError(f"MASTER_ADDR={address}: {error.strerror}") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = str(error)
        if time.monotonic() + pause > deadline:
            raise dist.DistNetworkError(
                f"failed to connect/validate to host {address}:{port} within {seconds:g} s ({why}): "
                "rank 0 of this run should listen there"
            )
        time.sleep(pause)
        pause = min(pause * 1.3, 0.5)


def _introduce(connection: socket.socket, token: str, seconds: float) -> Lines:
    lines, mine = Lines(connection, seconds), os.urandom(16).hex()
    try:
        theirs = lines.receive(LONGEST_PROOF)["nonce"]
        lines.send({"nonce": mine, "proof": proof(token, "rank", theirs, mine)}, seconds)
        if not hmac.compare_digest(lines.receive(LONGEST_PROOF)["proof"], proof(token, "store", theirs, mine)):
            raise ValueError("another run listens there")
    except BaseException:
        lines.close()
        raise
    return lines


def proof(token: str, speaker: str, *nonces: str) -> str:
    """What only who knows the token can say: HMAC-SHA256 over who speaks and what both sides drew."""
    return hmac.new(token.encode(), "\0".join((speaker, *nonces)).encode(), "sha256").hexdigest()


def listen(address: str, port: int, alone: bool) -> socket.socket:
    """A socket that listens on the interface of this address.

    Where others must come from outside and this host knows its own name by loopback alone, or not as its own, it
    is all interfaces.
    """
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    loopback = place[0] == "::1" or str(place[0]).startswith("127.")
    if not loopback or alone:
        try:
            return socket.create_server(place[:2], family=family, backlog=4096)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return socket.create_server(("", port), backlog=4096)


def _line(message: Request) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _text(value: str | bytes) -> str:
    return (value.encode() if isinstance(value, str) else value).decode("latin-1")
