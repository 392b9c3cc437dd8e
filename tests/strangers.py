"""Another user of the machine, who tries what one can try at a port without its token, until it is stopped.

    python strangers.py ADDRESS PORT [PORT …]        prints "here" once all of it goes on

As root it becomes uid nobody first.
"""

import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

NOBODY = 65534
HELD = 200
"""Half-open connections at each port."""
WORDS = [
    b"\0" * 100_000,
    b"GET / HTTP/1.1\r\n\r\n",
    b"[" * 60_000 + b"\n",
    b"\xff\xfe\n",
    b"null\n",
    b'{"nonce": 1, "proof": 2}\n',
    json.dumps({"token": "", "rank": 0}).encode() + b"\n",
    json.dumps({"do": "set", "number": 1, "key": "a", "value": "b"}).encode() + b"\n",
    json.dumps({"nonce": "00" * 16, "proof": "00" * 32}).encode() + b"\n",
    bytes([1]) + (0x3C85F7CE).to_bytes(4, "little") + bytes([5]),  # how torch's own client begins
]

hold = partial(socket.create_connection, timeout=5)

count: dict[tuple[object, int], int] = {}
"""What succeeded so far, by act and port."""


def main() -> None:
    address, *ports = sys.argv[1:]
    address.encode("idna")  # Python loads this from its own folder, which another user may not read
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    for port in map(int, ports):
        for act in (flood, talk, hold):
            count[act, port] = 0
            threading.Thread(target=for_ever, args=(act, (address, port)), daemon=True).start()
    while min(count.values()) < 100:
        time.sleep(0.01)
    print("here", flush=True)
    time.sleep(600)


def for_ever(act: Callable[[tuple[str, int]], socket.socket], place: tuple[str, int]) -> None:
    """The last connections stay open, HELD of them."""
    held: list[socket.socket] = []
    while True:
        try:
            held.append(act(place))
            count[act, place[1]] += 1
        except OSError:
            time.sleep(0.001)
        if len(held) > (HELD if act is hold else 0):
            held.pop(0).close()


def flood(place: tuple[str, int]) -> socket.socket:
    return socket.create_connection(place, timeout=5)


def talk(place: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(place, timeout=5)
    connection.sendall(random.choice(WORDS))
    return connection


if __name__ == "__main__":
    main()
