"""The random state of this rank, saved and put back, and whether what draws from it is the same as before.

Saved in types that `torch.load(weights_only=True)` takes: tensors, numbers, text, lists, dicts.
"""

import platform
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


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
    world_size: int, batch_size: int, accumulation: int, dtype: str, compiled: bool, hardware: str
) -> dict[str, Any]:
    """What must be the same for two attempts to compute the same to the last bit.

    Args:
        world_size, batch_size, accumulation: which sequences are summed where.
        dtype: of the forward and backward pass.
        compiled: by torch.compile.
        hardware: the GPU's name, or `cpu`.
    """
    from transformers import __version__ as transformers_version

    same: dict[str, Any] = {
        "ranks": world_size,
        "--batch-size": batch_size,
        "--gradient-accumulation-steps": accumulation,
        "--dtype": dtype,
        "--compile": compiled,
        "device": hardware,
        "torch": str(torch.__version__),
        "transformers": transformers_version,
    }
    if hardware == "cpu":
        # A sum that is split among threads is added up in another order.
        same |= {"threads": torch.get_num_threads(), "machine": platform.machine()}
    return same


NO_FIXED_ORDER = "GPU kernels whose sums have no fixed order (--deterministic takes others)"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not the same, as `ranks 2 → 3`."""
    return [
        f"{name} {before.get(name, 'unknown')} → {now.get(name, 'none')}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
