"""The hostfile: one line a host, in allocation order, because rank 0 follows that order."""

from cluster.allocation import Allocation
from cluster.mpirun import Dialect


def hostfile_text(allocation: Allocation, dialect: Dialect) -> str:
    """Text of the hostfile in the dialect's form. Simulated nodes share one line, as they share one host."""
    slots: dict[str, int] = {}
    for host in allocation.hosts:
        slots[host.name] = slots.get(host.name, 0) + host.ranks
    return "".join(dialect.host_line.format(host=name, slots=count) + "\n" for name, count in slots.items())
