"""What was granted: hosts in order, and on each host the ranks, GPUs and CPUs.

The allocation is the one statement of where ranks run; hostfile, mpirun's arguments, rank map and every rank's
own check are derived from it. It comes from Slurm's environment, from a list of hosts, or from this machine.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.errors import LauncherError, RequestError
from cluster.nodelist import HOST_NAME, MAX_HOSTS, expand_counts, expand_nodelist

FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Step ids from here up are Slurm's own (batch body, interactive step), smaller ones are srun steps (slurm.h)."""


class Host(NamedTuple):
    """One node of the plan. `cpus` is 0 where nobody said; `gpus` is None where only the host itself can know."""

    name: str
    ranks: int
    gpus: int | None
    cpus: int


class RankPlace(NamedTuple):
    """Where one rank runs. `gpu` is the index among the GPUs visible on its node."""

    rank: int
    node: int
    host: str
    local_rank: int
    gpu: int | None


class Allocation(NamedTuple):
    """Hosts in the order of their ranks. `source` is 'slurm', 'ssh' or 'local' (nodes simulated on one machine)."""

    source: str
    hosts: tuple[Host, ...]

    @property
    def world_size(self) -> int:
        return sum(host.ranks for host in self.hosts)

    def without(self, excluded: Collection[str], count: int) -> "Allocation":
        """The first `count` hosts that are not excluded; fewer where there are no more."""
        return self._replace(hosts=tuple(host for host in self.hosts if host.name not in excluded)[:count])

    def rank_map(self) -> list[RankPlace]:
        """Rank -> node, host, local rank, GPU: hosts are filled in order (mpirun's ``--map-by slot``)."""
        places: list[RankPlace] = []
        for node, host in enumerate(self.hosts):
            for local_rank in range(host.ranks):
                gpu = local_rank % host.gpus if host.gpus else None
                places.append(RankPlace(len(places), node, host.name, local_rank, gpu))
        return places

    def place(self, rank: int) -> RankPlace:
        """The place of one rank, without building the whole map."""
        first = 0
        for node, host in enumerate(self.hosts):
            if rank < first + host.ranks:
                local_rank = rank - first
                return RankPlace(rank, node, host.name, local_rank, local_rank % host.gpus if host.gpus else None)
            first += host.ranks
        raise IndexError(f"rank {rank} is not in a world of {first}")

    def summary(self) -> str:
        """One line: ``2 nodes × 8 GPUs = 16 ranks``, or each host's share where they differ."""
        nodes = "1 node" if len(self.hosts) == 1 else f"{len(self.hosts)} nodes"
        shares = {(host.ranks, host.gpus) for host in self.hosts}
        if len(shares) > 1:
            each = ", ".join(f"{host.name}: {host.ranks}" for host in self.hosts)
            return f"{nodes} = {_count(self.world_size, 'rank')} ({each})"
        ranks, gpus = next(iter(shares))
        if not gpus:
            return f"{nodes} × {_count(ranks, 'rank')} = {_count(self.world_size, 'rank')}"
        spread = "" if ranks == gpus else f" × {_count(ranks, 'rank')}"
        return f"{nodes} × {_count(gpus, 'GPU')}{spread} = {_count(self.world_size, 'rank')}"

    def table(self, longest: int = 32) -> list[str]:
        """The rank map as lines: rank, node, host, local rank, GPU; the middle is left out where it is long."""
        lines = ["rank  node  host                local  GPU"]
        size, half = self.world_size, longest // 2
        ends = (*range(half), *range(size - half, size))
        for place in self.rank_map() if size <= longest else map(self.place, ends):
            if size > longest and place.rank == size - half:
                lines.append(f"   …  ({size - 2 * half} more)")
            gpu = "-" if place.gpu is None else place.gpu
            lines.append(f"{place.rank:>4}  {place.node:>4}  {place.host:<18}  {place.local_rank:>5}  {gpu:>3}")
        return lines

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source, "hosts": [list(host) for host in self.hosts]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Allocation":
        """Raises `LauncherError` for a host that none can be called: such a file is none of ours."""
        hosts = tuple(Host(*host) for host in data["hosts"])
        for host in hosts:
            if not HOST_NAME.fullmatch(host.name):
                raise LauncherError(f"the plan names a host {host.name!r}: wanted letters, digits and . _ - alone")
        return Allocation(data["source"], hosts)


def from_slurm(
    environ: Mapping[str, str], gpus_by_host: Mapping[str, int] | None, ranks_per_node: int | None = None
) -> Allocation:
    """The allocation that Slurm granted, from the job's environment.

    Ranks on a host are its GPUs, or its tasks where no GPU was asked for; `ranks_per_node` overrides both.
    `gpus_by_host` is what `scontrol show job -d` says (see `parse_granted_gpus`); without it the environment
    decides, which knows uneven GPUs only for the first host.

    Raises `LauncherError` inside an srun step and in a heterogeneous job, where mpirun cannot start ranks.
    """
    step = environ.get("SLURM_STEP_ID", "")
    if step.isdigit() and int(step) < FIRST_SPECIAL_STEP:
        raise LauncherError(
            f"this is srun step {environ.get('SLURM_JOB_ID')}.{step}: mpirun started here would wait for ever. "
            "Run the launcher once in the batch body (sbatch, no srun before it) or in the shell of salloc."
        )
    if int(environ.get("SLURM_HET_SIZE") or 1) > 1:
        raise LauncherError("heterogeneous jobs (sbatch with ':') are not supported: ask for one component")
    if "SLURM_JOB_NODELIST" not in environ:
        raise LauncherError("SLURM_JOB_ID is set, but SLURM_JOB_NODELIST is not: this is no whole Slurm job")
    names = expand_nodelist(environ["SLURM_JOB_NODELIST"])
    tasks = _per_host(names, environ.get("SLURM_TASKS_PER_NODE"), "SLURM_TASKS_PER_NODE") or [1] * len(names)
    cpus = _per_host(names, environ.get("SLURM_JOB_CPUS_PER_NODE"), "SLURM_JOB_CPUS_PER_NODE") or [0] * len(names)
    if gpus_by_host is None:
        gpus = [_gpus_from_environ(environ)] * len(names)
    else:
        gpus = [gpus_by_host.get(name, 0) for name in names]
    if any(gpus) and not all(gpus) and not ranks_per_node:
        without = ", ".join(name for name, granted in zip(names, gpus, strict=True) if not granted)
        raise LauncherError(f"Slurm granted GPUs, but none on {without}: ask with --gpus-per-node")
    hosts = (
        Host(name, ranks_per_node or granted or count, granted, available)
        for name, count, granted, available in zip(names, tasks, gpus, cpus, strict=True)
    )
    return Allocation("slurm", tuple(hosts))


def parse_granted_gpus(job_detail: str) -> dict[str, int]:
    """GPUs on each host from ``scontrol show job -d``.

    A job with one GPU less on its second node prints::

        JOB_GRES=gpu:3
          Nodes=n1 CPU_IDs=0-1 Mem=0 GRES=gpu:2(IDX:0-1)
          Nodes=n2 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:0)
    """
    granted: dict[str, int] = {}
    named = 0
    for nodes, gres in re.findall(r"\bNodes=(\S+) CPU_IDs=\S* Mem=\S+ GRES=(\S*)", job_detail):
        count = sum(int(n) for n in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d{1,9})(?=[,(]|$)", gres))
        hosts = expand_nodelist(nodes)
        named += len(hosts)
        if named > MAX_HOSTS:
            raise RequestError(f"the job's details name more than {MAX_HOSTS:,} hosts")
        granted.update((host, count) for host in hosts)
    return granted


def disagreement(environ: Mapping[str, str], allocation: Allocation) -> str | None:
    """One line where Slurm's tasks differ from the ranks that will run, else None."""
    tasks = environ.get("SLURM_TASKS_PER_NODE")
    if not tasks or expand_counts(tasks) == [host.ranks for host in allocation.hosts]:
        return None
    return (
        f"Slurm granted {tasks} tasks per node, running {', '.join(str(h.ranks) for h in allocation.hosts[:8])}"
        f"{', …' if len(allocation.hosts) > 8 else ''} ranks (one for each GPU, or --ranks-per-node)"
    )


def from_hosts(text: str) -> Allocation:
    """Hosts as the guide writes them for ``mpirun -H``: ``a:8,b:8`` (1 rank where no number stands)."""
    return Allocation("ssh", tuple(_host_with_ranks(item.strip(), text) for item in text.split(",")))


def from_hostfile_text(text: str) -> Allocation:
    """Hosts from a hostfile: Open MPI's ``name slots=8``, MPICH's ``name:8``, or a bare name; ``#`` comments."""
    hosts: list[Host] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        slots = [word.removeprefix("slots=") for word in words[1:] if word.startswith("slots=")]
        hosts.append(_host_with_ranks(f"{words[0]}:{slots[0]}" if slots else words[0], line))
    if not hosts:
        raise RequestError("the hostfile names no host: wanted lines such as 'a slots=8'")
    return Allocation("ssh", tuple(hosts))


def on_this_machine(nodes: int, ranks_per_node: int | None, gpus: int, cpus: int) -> Allocation:
    """Simulated nodes on one machine: its GPUs and CPUs are shared out evenly among them.

    Raises `RequestError` where more GPUs are asked for than the machine has.
    """
    share = gpus // nodes
    if gpus and not share:
        raise RequestError(f"this machine has {_count(gpus, 'GPU')} for {nodes} simulated nodes: fewer --nodes")
    host = Host("localhost", ranks_per_node or share or 1, share, max(1, cpus // nodes))
    return Allocation("local", (host,) * nodes)


def _host_with_ranks(item: str, given: str) -> Host:
    name, colon, ranks = item.partition(":")
    if not HOST_NAME.fullmatch(name) or (colon and not re.fullmatch(r"[1-9][0-9]{0,8}", ranks)):
        raise RequestError(f"cannot read the host {item!r} in {given!r}: wanted a form like 'a:8,b:8'")
    return Host(name, int(ranks or 1), None, 0)


def _per_host(names: Sequence[str], counts: str | None, variable: str) -> list[int] | None:
    if not counts:
        return None
    numbers = expand_counts(counts)
    if len(numbers) != len(names):
        raise LauncherError(f"{variable}={counts} counts {len(numbers)} nodes, SLURM_JOB_NODELIST {len(names)}")
    return numbers


def _gpus_from_environ(environ: Mapping[str, str]) -> int:
    """GPUs per node from ``SLURM_GPUS_PER_NODE`` (``2``, ``a100:2``) or the first host's ``SLURM_GPUS_ON_NODE``."""
    value = environ.get("SLURM_GPUS_PER_NODE") or environ.get("SLURM_GPUS_ON_NODE") or "0"
    return sum(int(part.rpartition(":")[2]) for part in value.split(","))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
