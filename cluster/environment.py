"""The environment that crosses mpirun: what is forwarded by name, what is taken out, what each rank is given.

`docs/environment.md` states the same contract for users.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.allocation import Allocation, Host, RankPlace
from cluster.nodelist import compress_counts, compress_nodelist

FORWARDED_PREFIXES = (
    "CONDA_",
    "CUDA_",
    "FI_",
    "GLOO_",
    "HF_",
    "KMP_",
    "MKL_",
    "NCCL_",
    "OMP_",
    "PYTHON",
    "PYTORCH_",
    "SSL_",
    "TENSORBOARD_",
    "TOKENIZERS_",
    "TORCH",
    "TRACKIO_",
    "TRANSFORMERS_",
    "TRITON_",
    "UCX_",
    "WANDB_",
)
FORWARDED_NAMES = frozenset(
    [
        "PATH",
        "LD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "XDG_CACHE_HOME",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "SLURM_JOB_ID",
        "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_RESTART_COUNT",
    ]
)
NODE_LOCAL = frozenset({"CUDA_VISIBLE_DEVICES"})
"""Slurm sets these on each node for itself: the first node's value would be wrong on the others."""

STALE_PREFIXES = ("OMPI_COMM_WORLD_", "PMIX_", "PMI_", "PMI2_", "MPI_LOCAL", "TORCHELASTIC_", "CLUSTER_")
STALE_NAMES = frozenset(
    [
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ]
)
"""Identity of an outer launch (a shell inside another job, an exported variable): it would give ranks false names."""


VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
"""An environment may hold other names too; mpirun's own lists of names are separated by commas and semicolons."""


def forwarded_names(environ: Mapping[str, str], asked: Iterable[str] = ()) -> list[str]:
    """Names of the variables that mpirun hands to the ranks, sorted: the well-known ones and those `asked` for."""
    known = (
        name
        for name in environ
        if (name in FORWARDED_NAMES or name.startswith(FORWARDED_PREFIXES))
        and name not in NODE_LOCAL
        and VARIABLE_NAME.fullmatch(name)
    )
    return sorted({*known, *asked})


def mpirun_environment(
    environ: Mapping[str, str], allocation: Allocation, nic: str | None, has_daemon: Callable[[str], bool]
) -> dict[str, str]:
    """The environment of the mpirun process itself. ``has_daemon(host)``: whether mpirun starts a daemon there.

    Inside Slurm, mpirun counts slots by SLURM_TASKS_PER_NODE, whatever the hostfile says, and refuses to start
    without it: the plan is rendered into it. SLURM_EXPORT_ENV=NONE would strip the environment of mpirun's own
    srun. Away from Slurm no trace of a surrounding job may remain, or mpirun would use that job's nodes.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in STALE_NAMES and not name.startswith(STALE_PREFIXES)
    }
    if allocation.source == "slurm":
        # The hosts used, which may be fewer than were granted: mpirun takes its nodes from here.
        # Folded, because Linux takes no variable over 128 KiB: 10,000 names of 14 letters are more.
        kept["SLURM_JOB_NODELIST"] = kept["SLURM_NODELIST"] = compress_nodelist(host.name for host in allocation.hosts)
        kept["SLURM_JOB_NUM_NODES"] = kept["SLURM_NNODES"] = str(len(allocation.hosts))
        kept["SLURM_TASKS_PER_NODE"] = compress_counts([host.ranks for host in allocation.hosts])
        kept["SLURM_NTASKS"] = kept["SLURM_NPROCS"] = str(allocation.world_size)
        kept["SLURM_EXPORT_ENV"] = "ALL"
        kept.pop("SLURM_NTASKS_PER_NODE", None)
        if "SLURM_GPUS" in kept:
            # sbatch --gpus counts the whole job; the step of mpirun's daemons gets what its hosts have
            kept["SLURM_GPUS"] = str(sum(host.gpus or 0 for host in allocation.hosts if has_daemon(host.name)))
    else:
        kept = {name: value for name, value in kept.items() if not name.startswith("SLURM_")}
    if nic:
        kept["NCCL_SOCKET_IFNAME"] = kept["GLOO_SOCKET_IFNAME"] = nic
    if os.geteuid() == 0:
        kept["OMPI_ALLOW_RUN_AS_ROOT"] = kept["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def with_project(environ: Mapping[str, str]) -> dict[str, str]:
    """This environment, in which Python finds the project from whatever working directory, also where it is not
    installed."""
    home = str(Path(__file__).parent.parent)
    if os.path.basename(home) in ("site-packages", "dist-packages"):
        return dict(environ)
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, [home, environ.get("PYTHONPATH")]))}


def rank_environment(plan: Mapping[str, Any], allocation: Allocation, place: RankPlace) -> dict[str, str]:
    """The variables a rank's program finds: torchrun's names, so that a script written for torchrun just runs."""
    host = allocation.hosts[place.node]
    return {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(allocation.world_size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(host.ranks),
        "GROUP_RANK": str(place.node),
        "GROUP_WORLD_SIZE": str(len(allocation.hosts)),
        "MASTER_ADDR": plan["master_addr"],
        "MASTER_PORT": str(plan["master_port"]),
        "CLUSTER_STORE_TOKEN": plan["store_token"],
        "TORCHELASTIC_ERROR_FILE": os.path.join(plan["attempt_dir"], "errors", f"rank-{place.rank}.json"),
        "CLUSTER_RUN_DIR": plan["run_dir"],
        "CLUSTER_ATTEMPT": str(plan["attempt"]),
    }


def default_omp_threads(host: Host) -> int:
    """CPU threads for each rank: an even share of the host's CPUs, 1 where nobody said how many there are."""
    return max(1, host.cpus // host.ranks)


def simulated_gpus(visible: list[str], place: RankPlace, host: Host) -> list[str]:
    """The GPUs of one simulated node: its slice of those visible on this machine."""
    gpus = host.gpus or 0
    return visible[place.node * gpus : (place.node + 1) * gpus]
