"""What every subject of the bench is given, and what it has to be able to do."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.bench.options import ModelSize
from training.ranks import RankInfo
from training.teardown import keep_until_the_end

WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
PEAK_LR = 6e-4
WARMUP_STEPS = 10
ENDLESS = 1_000_000
"""Steps of a run that the bench leaves when it has seen enough."""


@dataclass(frozen=True)
class Setting:
    """The same model, data and precision for all."""

    size: ModelSize
    batch_size: int
    """Sequences per rank and step."""
    length: int
    """Tokens per sequence."""
    dropout: float
    compiled: bool
    device: torch.device
    ranks: RankInfo
    tokens: np.ndarray
    """Training data, shape [tokens], uint16."""
    seed: int

    @property
    def bfloat16(self) -> bool:
        """Forward and backward pass in bfloat16 on GPUs, in float32 on CPUs."""
        return self.device.type == "cuda"

    @property
    def step_tokens(self) -> int:
        """Tokens per rank and step."""
        return self.batch_size * self.length


class Subject(Protocol):
    """A training that goes on by as many steps as it is asked for."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def steps(self, count: int) -> Any:
        """Make so many optimizer steps; the loss of the last one in nats per token, a scalar, which may still be on
        its way from the GPU."""

    def close(self) -> None:
        """End what goes on beside: threads, files."""


def over_ranks(module: Any, setting: Setting, **options: Any) -> Any:
    """Wrapped in DDP where there are several ranks."""
    if setting.ranks.world_size == 1:
        return module
    wrapped = DistributedDataParallel(
        module, device_ids=[setting.device] if setting.device.type == "cuda" else None, **options
    )
    keep_with_gloo(wrapped, setting)
    return wrapped


def keep_with_gloo(wrapped: Any, setting: Setting) -> None:
    """Without a GPU a DDP is never destroyed, see `keep_until_the_end`; with one, its memory is needed."""
    if setting.device.type == "cpu":
        keep_until_the_end(wrapped)


def synthetic_tokens(vocabulary: int, count: int, seed: int) -> np.ndarray:
    """Random tokens whose frequencies fall as in text (Zipf: the k-th most frequent one comes in proportion to 1/k).

    Uniform ones would be kinder to the embedding's backward pass, which adds up the gradients of equal tokens.
    Shape [count], uint16.
    """
    chance = np.random.default_rng((seed, count))
    ranks = (vocabulary + 1) ** chance.random(count) - 1
    # Which token has which rank is left to chance too, so that frequent ones do not lie side by side.
    return chance.permutation(vocabulary)[ranks.astype(np.int64).clip(0, vocabulary - 1)].astype(np.uint16)
