"""Another user of the machine, who tries what one can try at a port without its token, until it is stopped.

    python strangers.py ADDRESS PORT [PORT …]        prints "here" once all of it goes on

As root it becomes uid nobody first.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

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


def main() -> None:
    address, *ports = sys.argv[1:]
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    for port in map(int, ports):
        for act in (flood, talk, hold):
            threading.Thread(target=for_ever, args=(act, (address, port)), daemon=True).start()
    time.sleep(0.2)
    print("here", flush=True)
    time.sleep(600)


def for_ever(act: Callable[[tuple[str, int]], None], place: tuple[str, int]) -> None:
    while True:
        try:
            act(place)
        except OSError:
            time.sleep(0.001)


def flood(place: tuple[str, int]) -> None:
    socket.create_connection(place, timeout=5).close()


def talk(place: tuple[str, int]) -> None:
    for words in WORDS:
        with socket.create_connection(place, timeout=5) as connection:
            connection.sendall(words)
            connection.recv(1000)


def hold(place: tuple[str, int]) -> None:
    held = []
    try:
        while True:
            held.append(socket.create_connection(place, timeout=5))
            if len(held) > HELD:
                held.pop(0).close()
    finally:
        for connection in held:
            connection.close()


if __name__ == "__main__":
    main()
