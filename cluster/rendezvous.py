"""Where the ranks meet: MASTER_ADDR and MASTER_PORT."""

import os
import socket
from collections.abc import Mapping

from cluster.allocation import Allocation
from cluster.errors import LauncherError
from cluster.machine import is_this_host

MASTER_PORTS = range(20000, 28000)
"""Below Linux's default ephemeral range (32768 up) and away from 29500, which everybody takes."""


def rendezvous(allocation: Allocation, environ: Mapping[str, str], attempt: int) -> tuple[str, int]:
    """The first host of the allocation, where rank 0 runs, and a port that nobody there listens on."""
    first = allocation.hosts[0].name
    job_id, restarts = (int(environ.get(name) or 0) for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))
    port = first_port(job_id or os.getpid(), restarts, attempt)
    if is_this_host(first):
        port = free_port(port)
    return "127.0.0.1" if allocation.source == "local" else first, port


def first_port(job_id: int, restart_count: int, attempt: int) -> int:
    """First port to try: jobs and attempts that share a node start from different ones."""
    return MASTER_PORTS[(job_id * 97 + restart_count * 31 + attempt * 7) % len(MASTER_PORTS)]


def free_port(port: int) -> int:
    """The first port from `port` on that can be bound here, going round in `MASTER_PORTS`."""
    for offset in range(len(MASTER_PORTS)):
        candidate = MASTER_PORTS[(port - MASTER_PORTS.start + offset) % len(MASTER_PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind(("", candidate))
            except OSError:
                continue
            return candidate
    raise LauncherError(f"no free port between {MASTER_PORTS.start} and {MASTER_PORTS.stop - 1} on this host")
