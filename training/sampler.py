"""Which training sequences each rank reads at each step, computed from the numbers alone.

The whole run is one endless row of samples: a fresh permutation of the data for each epoch, one after the
other. A step takes the next `world size × accumulation × batch` of them and deals them out to the ranks.
Nothing is remembered: a resumed run computes where it stands instead of fetching and throwing away what it
has seen, also with another number of ranks, and each sequence still comes once per epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class SampleOrder:
    """The global order of samples."""

    size: int
    """Sequences in the training data."""
    seed: int

    def at(self, start: int, count: int) -> list[int]:
        """The indices of samples `start` to `start + count` of the run, counted over all epochs."""
        indices: list[int] = []
        while count > len(indices):
            epoch, at = divmod(start + len(indices), self.size)
            indices += _permutation(self.size, self.seed, epoch)[at : at + count - len(indices)].tolist()
        return indices


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


@dataclass(frozen=True)
class RankBatches:
    """The batches of one rank, in order: an iterable of lists of indices.

    Each optimizer step is `accumulation` batches of `batch_size`.
    """

    order: SampleOrder
    rank: int
    world_size: int
    batch_size: int
    accumulation: int
    first_sample: int
    """Samples that all ranks together have trained on before the first batch."""
    steps: int
    """Optimizer steps to yield batches for."""

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(len(self)):
            yield self._batch(number)

    def of_step(self, number: int) -> list[int]:
        """The indices that this rank reads in one step, counted from 0 from the first that is made here."""
        first = number * self.accumulation
        return [index for batch in range(first, first + self.accumulation) for index in self._batch(batch)]

    def _batch(self, number: int) -> list[int]:
        stride = self.world_size * self.batch_size
        return self.order.at(self.first_sample + number * stride + self.rank * self.batch_size, self.batch_size)


def remaining_steps(size: int, epochs: float, max_steps: int | None, done: int, samples: int, per_step: int) -> int:
    """Optimizer steps still to make.

    Args:
        size: sequences in the training data.
        epochs: passes over them.
        max_steps: the whole run's optimizer steps; overrides `epochs`.
        done: optimizer steps already made.
        samples: samples already trained on; not `done × per_step` where the number of ranks has changed.
        per_step: samples of one optimizer step.
    """
    if max_steps is not None:
        return max(0, max_steps - done)
    left = int(size * epochs) - samples
    return max(1 if done == 0 else 0, left // per_step)
