"""Which device this rank trains on. GPUs that were granted but cannot be seen are an error, never a silent
CPU run."""

import ctypes
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from training.errors import InputError
from training.ranks import RankInfo

if TYPE_CHECKING:
    import torch

# nvmlGpuP2PCapsIndex_t of nvml.h, https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html; status 0 is OK.
NVML_P2P_NVLINK = 2


def choose_device(
    wanted: Literal["auto", "cuda", "cpu"], ranks: RankInfo, visible_gpus: int, environ: Mapping[str, str]
) -> str:
    """`cpu` or `cuda:<index>` for this rank.

    Args:
        wanted: the option --device.
        ranks: this process's place.
        visible_gpus: how many GPUs torch sees here.
        environ: where a grant of GPUs shows.

    Raises:
        InputError: GPUs are wanted or granted, and torch sees none or too few.
    """
    if wanted == "cpu":
        return "cpu"
    if visible_gpus == 0:
        grant = granted_gpus(environ)
        if wanted == "auto" and grant is None:
            return "cpu"
        why = f"GPUs were granted ({grant})" if grant else "--device cuda was given"
        raise InputError(
            f"{why} but torch sees none: install a torch built for CUDA and check the driver with nvidia-smi, "
            f"or give --device cpu to train on the CPU"
        )
    if visible_gpus >= ranks.local_world_size:
        return f"cuda:{ranks.local_rank}"
    if visible_gpus == 1 and _one_gpu_each(environ):
        return "cuda:0"
    raise InputError(
        f"{ranks.local_world_size} ranks on this host but torch sees {visible_gpus} of its GPUs: start one rank per "
        f"GPU, or give --device cpu"
    )


def own_device(wanted: Literal["auto", "cuda", "cpu"], ranks: RankInfo) -> str:
    """The same, by what torch sees here and by this process's environment."""
    import torch

    return choose_device(wanted, ranks, torch.cuda.device_count(), os.environ)


def in_bfloat16(dtype: Literal["auto", "float32", "bfloat16"], device: "torch.device") -> bool:
    """Whether forward and backward pass are in bfloat16 rather than float32, by the option --dtype."""
    return dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda")


def granted_gpus(environ: Mapping[str, str]) -> str | None:
    """The variable by which GPUs were granted to this process, as `NAME=value`; None where there is none."""
    devices = environ.get("CUDA_VISIBLE_DEVICES")
    if devices is not None:
        # Set but empty means that this process was deliberately given none, whatever the job as a whole has.
        return f"CUDA_VISIBLE_DEVICES={devices}" if devices not in ("", "-1", "NoDevFiles") else None
    for name in ("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"):
        if environ.get(name, "") not in ("", "0"):
            return f"{name}={environ[name]}"
    return None


def _one_gpu_each(environ: Mapping[str, str]) -> bool:
    """Whether each rank was given one GPU of its own, rather than all ranks sharing the host's only one."""
    return len(environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and "CUDA_VISIBLE_DEVICES" in environ


def keep_memory_whole() -> None:
    """Let the pieces of a GPU's memory grow in place, unless the user has said how to share it out.

    Else what the first step leaves behind, the optimizer's state, lies in the middle of what its activations had, and
    the second step needs as much again. To be called before the first use of a GPU: torch reads it then
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-alloc-conf).
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def make_deterministic() -> None:
    """From now on torch takes only kernels whose sums have a fixed order, and refuses an operation that has none.

    To be called before the first use of a GPU: cuBLAS reads its setting then
    (https://docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass has no fixed order


def device_name(device: "torch.device") -> str:
    """The GPU's name as its maker writes it, or `cpu`."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def memory_bytes(device: "torch.device") -> dict[str, int]:
    """Memory that torch has allocated on the GPU, or the process's largest resident size on a CPU, in
    bytes."""
    if device.type == "cuda":
        import torch

        return {
            "memory_allocated_bytes": torch.cuda.memory_allocated(device),
            "memory_peak_bytes": torch.cuda.max_memory_allocated(device),
        }
    import resource

    return {"memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def joined_by_nvlink(uuids: Sequence[str]) -> bool:
    """Whether NVLink joins each two of these GPUs of this host; False where the driver does not say.

    Args:
        uuids: as torch has them, without `GPU-` in front.
    """
    status = ctypes.c_int(-1)
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return False
        handles = [ctypes.c_void_p() for _ in uuids]
        for uuid, handle in zip(uuids, handles, strict=True):
            if nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle)) != 0:
                return False
        return all(
            nvml.nvmlDeviceGetP2PStatus(one, other, NVML_P2P_NVLINK, ctypes.byref(status)) == 0 and status.value == 0
            for one, other in combinations(handles, 2)
        )
    return False


def share_cpus(ranks: RankInfo) -> None:
    """Use this rank's share of the host's CPUs, unless OMP_NUM_THREADS already says how many threads: torch alone would
    take every CPU for every rank."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(threads_per_rank(len(os.sched_getaffinity(0)), ranks))


def threads_per_rank(cpus: int, ranks: RankInfo) -> int:
    """CPU threads for one rank, of so many that its host has for all."""
    return max(1, cpus // ranks.local_world_size)
