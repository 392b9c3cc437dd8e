"""The batches of a rank: gathered from the memory-mapped tokens straight into the tensor that is trained on.

Tokens stay as small as on disk until they are on the device. On the host there is one copy of a batch, in pinned memory
where the device is a GPU.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from training.sampler import RankBatches
from training.tokens import Blocks

AHEAD_PER_THREAD = 2
"""Batches."""

T = TypeVar("T")


@dataclass(frozen=True)
class Loader:
    """An iterable of batches: int64 tensors of shape [batch, tokens] on the device."""

    blocks: Blocks
    batches: RankBatches
    """Which blocks."""
    workers: int
    """Threads that read ahead; 0 reads when asked. What they hide is the wait for a slow file system, and a thread
    can wait as well as a process."""
    device: torch.device

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[torch.Tensor]:
        if self.device.type == "cuda":
            ring = PinnedRing(self.blocks, self.batches.batch_size, AHEAD_PER_THREAD * self.workers + 2)
            gathered = ahead(ring.gather, self.batches, self.workers)
            return (ring.to_device(slot, self.device) for slot in gathered)
        return ahead(self._gather, self.batches, self.workers)

    def _gather(self, indices: list[int]) -> torch.Tensor:
        return torch.from_numpy(self.blocks.take(indices).astype(np.int64))


class _Slot(NamedTuple):
    pinned: torch.Tensor
    array: np.ndarray
    """The same memory."""
    copied: Any
    """The event after its last copy to the device."""


class PinnedRing:
    """Pinned memory for a few batches, each filled again once the GPU has taken what was in it."""

    def __init__(self, blocks: Blocks, batch_size: int, slots: int) -> None:
        """`slots`: batches that can be on their way, and one more."""
        self._blocks = blocks
        kind = torch.from_numpy(np.zeros(0, blocks.tokens.dtype)).dtype
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(slots):
            pinned = torch.empty((batch_size, blocks.length), dtype=kind, pin_memory=True)
            self._free.put(_Slot(pinned, pinned.numpy(), torch.cuda.Event()))

    def gather(self, indices: list[int]) -> _Slot:
        """Fill a slot with these blocks."""
        slot = self._free.get()
        slot.copied.synchronize()
        self._blocks.take(indices, slot.array)
        return slot

    def to_device(self, slot: _Slot, device: torch.device) -> torch.Tensor:
        """The batch on the device as int64; waits for nothing."""
        batch = slot.pinned.to(device, non_blocking=True)
        slot.copied.record()
        self._free.put(slot)
        return batch.to(torch.int64)


def ahead(gather: Callable[[list[int]], T], batches: Iterable[list[int]], workers: int) -> Iterator[T]:
    """What `gather` makes of each, in order; by so many threads, `AHEAD_PER_THREAD` for each."""
    if workers == 0:
        yield from map(gather, batches)
        return
    rest = iter(batches)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[T]] = deque(
            pool.submit(gather, indices) for indices in islice(rest, AHEAD_PER_THREAD * workers)
        )
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(gather, indices) for indices in islice(rest, 1))
            yield made
