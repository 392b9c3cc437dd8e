"""The random state of this rank, saved and put back, and whether what draws from it is the same as before.

Saved in types that `torch.load(weights_only=True)` takes: tensors, numbers, text, lists, dicts.
"""

import platform
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from training.config import TrainConfig


def seed_all(seed: int) -> None:
    """Seed every generator that a program may draw from: Python's, NumPy's, torch's on CPU and GPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture(device: torch.device) -> dict[str, Any]:
    """The state of all of them now."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: Mapping[str, Any], device: torch.device) -> None:
    """Put a captured state back; a generator that it does not have is left as it is."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "python" in state:
        python = state["python"]
        random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    if "numpy" in state:
        numpy = state["numpy"]
        keys = numpy["keys"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))


def conditions(
    config: TrainConfig, hosts: Sequence[str], total: int, warmup: int, dtype: str, kernels: str, hardware: str
) -> dict[str, Any]:
    """What must be the same for two attempts to compute the same to the last bit.

    Args:
        config: the options; those that `check_same_run` compares are not repeated here.
        hosts: of every rank, in rank order: which sums cross the network.
        total, warmup: optimizer steps; the learning rate follows from them.
        dtype, kernels: of the forward and backward pass.
        hardware: the GPU's name, or `cpu`.
    """
    from transformers import __version__ as transformers_version

    same: dict[str, Any] = {
        "ranks": len(hosts),
        "ranks per host": ",".join(str(count) for count in Counter(hosts).values()),
        "--batch-size": config.batch_size,
        "--gradient-accumulation-steps": config.gradient_accumulation_steps,
        "--dtype": dtype,
        "--kernels": kernels,
        "--packing": config.packing,
        "--strategy": config.strategy,
        "--reduce-dtype": config.reduce_dtype,
        "--ddp-bucket-cap-mb": config.ddp_bucket_cap_mb,
        "--ddp-overlap": config.ddp_overlap,
        "--compile": config.compile,
        "--deterministic": config.deterministic,
        "--lr": config.lr,
        "--lr-scheduler": config.lr_scheduler,
        "steps": total,
        "warm-up": warmup,
        "--weight-decay": config.weight_decay,
        "--max-grad-norm": config.max_grad_norm,
        "device": hardware,
        "torch": str(torch.__version__),
        "transformers": transformers_version,
    }
    if hardware == "cpu":
        # A sum that is split among threads, or among a processor's wide registers, is added up in another order.
        same |= {
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
        }
    return same


NO_FIXED_ORDER = "GPU kernels whose sums have no fixed order (--deterministic takes others)"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not the same, as `ranks 2 → 3`."""
    return [
        f"{name} {before.get(name, 'unknown')} → {now.get(name, 'none')}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
