"""The learning rate of a step."""

import math
from typing import Literal

from training.errors import InputError

WARMUP_SHARE = 0.03


def warmup_steps(wanted: int | None, total: int) -> int:
    """The warm-up's length: as wanted, else 3% of the steps.

    Raises:
        InputError: the warm-up would outlast the run.
    """
    if wanted is None:
        return round(WARMUP_SHARE * total)
    if wanted > total:
        raise InputError(f"--warmup-steps {wanted}: the whole run has only {total} steps; give fewer, or train longer")
    return wanted


def learning_rate(
    step: int, total: int, warmup: int, peak: float, shape: Literal["cosine", "linear", "constant"]
) -> float:
    """The rate of optimizer step `step`, counted from 0, in a run of `total` steps.

    It rises in equal parts over the warm-up, the first step included, and would reach zero at step `total`:
    the real number of optimizer steps, whatever accumulation and the number of ranks make of the epochs.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if shape == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if shape == "linear":
        return peak * max(0.0, 1 - progress)
    return peak
