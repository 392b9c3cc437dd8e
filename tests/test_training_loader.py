"""Batches are gathered once, in order, as many ahead as there are threads for."""

import threading

import numpy as np
import pytest
import torch

from training import loader
from training.loader import Loader, PinnedRing, ahead
from training.sampler import RankBatches, SampleOrder
from training.tokens import Blocks

CPU = torch.device("cpu")
BLOCKS = Blocks(np.arange(65_536 - 4_005, 65_536).astype(np.uint16), 10)


def batches(steps: int = 30) -> RankBatches:
    return RankBatches(SampleOrder(len(BLOCKS), 0), 0, 1, 4, 1, 0, steps)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_batch_is_the_blocks_that_the_sampler_names(workers: int):
    read = list(Loader(BLOCKS, batches(), workers, CPU))
    assert [batch.tolist() for batch in read] == [[BLOCKS[i].tolist() for i in part] for part in batches()]
    assert {batch.dtype for batch in read} == {torch.int64}


def test_reading_draws_no_random_number():
    before = torch.get_rng_state()
    list(Loader(BLOCKS, batches(3), 2, CPU))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_thread_reads_two_batches_ahead_and_no_more():
    asked: list[int] = []
    third = threading.Event()

    def gather(indices: list[int]) -> int:
        asked.extend(indices)
        if indices == [2]:
            third.set()
        return indices[0]

    read = ahead(gather, ([number] for number in range(100)), 1)
    assert next(read) == 0
    assert third.wait(60)
    assert asked == [0, 1, 2]


def test_what_fails_in_a_thread_is_raised_where_its_batch_is_read():
    read = ahead(lambda indices: 1 // indices[0], iter([[1], [0]]), 1)
    assert next(read) == 1
    with pytest.raises(ZeroDivisionError):
        next(read)


class Copied:
    """An event after a copy, and how often it was recorded and awaited."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def record(self) -> None:
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("synchronize")


def test_pinned_memory_is_filled_again_only_once_the_device_has_what_was_in_it(monkeypatch):
    made: list[Copied] = []

    def event() -> Copied:
        made.append(Copied())
        return made[-1]

    def pageable(shape, dtype, pin_memory):
        assert pin_memory
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(loader.torch.cuda, "Event", event)
    monkeypatch.setattr(loader.torch, "empty", pageable)
    ring = PinnedRing(BLOCKS, 4, 2)
    read = [ring.to_device(ring.gather(indices), CPU) for indices in batches(4)]
    assert [batch.tolist() for batch in read] == [[BLOCKS[i].tolist() for i in part] for part in batches(4)]
    assert [slot.calls for slot in made] == [["synchronize", "record"] * 2] * 2
