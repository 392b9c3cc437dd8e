"""Where the ranks meet: MASTER_ADDR and MASTER_PORT."""

import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

from cluster.allocation import Allocation
from cluster.errors import LauncherError
from cluster.machine import is_this_host
from cluster.own_job import restart_count

MASTER_PORTS = range(20000, 28000)
"""Below Linux's default ephemeral range (32768 up) and away from 29500, which everybody takes."""


class Rendezvous(NamedTuple):
    address: str
    port: int
    held: socket.socket
    """While it is open, the port is this launch's alone."""


def rendezvous(allocation: Allocation, environ: Mapping[str, str], attempt: int, own_address: str) -> Rendezvous:
    """The first host of the allocation, where rank 0 runs, and a port there.

    On the first host itself it is `own_address`, under which the others reach it, and a port that nobody has. From
    elsewhere nothing can be held.
    """
    first = allocation.hosts[0].name
    job_id = int(environ.get("SLURM_JOB_ID") or os.getpid())
    port = first_port(job_id, restart_count(environ), attempt)
    if not is_this_host(first):
        return Rendezvous(first, port, socket.socket())
    held = hold_port(port)
    return Rendezvous(own_address, held.getsockname()[1], held)


def first_port(job_id: int, restart_count: int, attempt: int) -> int:
    """First port to try: jobs and attempts that share a node start from different ones."""
    return MASTER_PORTS[(job_id * 97 + restart_count * 31 + attempt * 7) % len(MASTER_PORTS)]


def hold_port(port: int) -> socket.socket:
    """A socket that holds the first port from `port` on that nobody has, going round in `MASTER_PORTS`.

    It does not listen. Rank 0 binds the same port and listens there, which Linux lets everyone do who sets
    SO_REUSEADDR, as torch and Python's servers do. Who looks for a free port does not set it, and passes over this one.
    """
    for offset in range(len(MASTER_PORTS)):
        held = socket.socket()
        try:
            held.bind(("", MASTER_PORTS[(port - MASTER_PORTS.start + offset) % len(MASTER_PORTS)]))
        except OSError:
            held.close()
            continue
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return held
    raise LauncherError(f"no free port between {MASTER_PORTS.start} and {MASTER_PORTS.stop - 1} on this host")
