"""Find out what was granted: the hosts given, else Slurm's allocation, else this machine."""

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from cluster import slurm
from cluster.allocation import (
    Allocation,
    disagreement,
    from_hostfile_text,
    from_hosts,
    from_slurm,
    on_this_machine,
    parse_granted_gpus,
)
from cluster.errors import RequestError
from cluster.machine import visible_gpus
from cluster.own_job import own_id


def find_allocation(options: Namespace, environ: Mapping[str, str]) -> Allocation:
    """The allocation that ranks will run in. Raises `RequestError` where the options contradict it."""
    if options.hosts or options.hostfile:
        return named_hosts(options)
    if "SLURM_JOB_ID" in environ and options.cluster != "local":
        return _slurm_job(options, environ)
    if options.cluster == "slurm":
        raise RequestError("--cluster slurm, but this is no Slurm job: use sbatch, salloc or python -m cluster.submit")
    return this_machine(options.nodes or 1, options.ranks_per_node)


def named_hosts(options: Namespace) -> Allocation:
    """The hosts of ``--hosts`` or ``--hostfile``."""
    if options.hosts and options.hostfile:
        raise RequestError("--hosts and --hostfile both name hosts: give one of them")
    if options.hosts:
        return from_hosts(options.hosts)
    try:
        return from_hostfile_text(Path(options.hostfile).read_text())
    except OSError as error:
        raise RequestError(f"--hostfile {options.hostfile}: {error.strerror}") from error


def this_machine(nodes: int, ranks_per_node: int | None) -> Allocation:
    """Simulated nodes, among which the GPUs and CPUs that this process may use are shared out."""
    gpus = len(visible_gpus(os.environ))
    return on_this_machine(nodes, ranks_per_node, gpus, len(os.sched_getaffinity(0)))


def _slurm_job(options: Namespace, environ: Mapping[str, str]) -> Allocation:
    if options.nodes:
        raise RequestError("--nodes is for this machine: in a Slurm job all granted nodes are used (sbatch --nodes)")
    detail = slurm.job_detail(own_id(environ))
    granted = parse_granted_gpus(detail) if detail else None
    allocation = from_slurm(environ, granted, options.ranks_per_node)
    if note := disagreement(environ, allocation):
        print(f"note: {note}")
    return allocation
