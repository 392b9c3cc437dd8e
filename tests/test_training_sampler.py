"""The order of samples: once per epoch each, whatever the ranks, and the same from the middle on."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from training.sampler import RankBatches, SampleOrder, remaining_steps

sizes = st.integers(min_value=1, max_value=60)
small = st.integers(min_value=1, max_value=4)


def all_ranks(size: int, seed: int, world: int, batch: int, accumulation: int, first: int, steps: int) -> list[int]:
    """The samples of all ranks in the order in which the run as a whole reads them."""
    per_rank = [
        list(RankBatches(SampleOrder(size, seed), rank, world, batch, accumulation, first, steps))
        for rank in range(world)
    ]
    return [i for part in range(steps * accumulation) for rank in range(world) for i in per_rank[rank][part]]


@given(sizes, st.integers(0, 99), small, small, small)
def test_each_sample_comes_once_per_epoch_over_all_ranks(size, seed, world, batch, accumulation):
    steps = -(-2 * size // (world * batch * accumulation))
    read = all_ranks(size, seed, world, batch, accumulation, 0, steps)
    for epoch in range(2):
        assert Counter(read[epoch * size : (epoch + 1) * size]) == Counter(range(size))


@given(sizes, small, small, small, st.integers(0, 5), st.integers(1, 5))
def test_a_resumed_run_reads_on_where_the_undisturbed_one_does(size, world, batch, accumulation, done, more):
    per_step = world * batch * accumulation
    whole = all_ranks(size, 0, world, batch, accumulation, 0, done + more)
    rest = all_ranks(size, 0, world, batch, accumulation, done * per_step, more)
    assert whole[done * per_step :] == rest


@given(sizes, small, small, small)
def test_a_run_resumed_on_another_number_of_ranks_repeats_and_skips_nothing(size, world, other, batch):
    before = all_ranks(size, 0, world, batch, 1, 0, 3)
    after = all_ranks(size, 0, other, batch, 1, 3 * world * batch, 3)
    assert before + after == SampleOrder(size, 0).at(0, 3 * batch * (world + other))


def test_epochs_and_seeds_are_shuffled_differently():
    order = SampleOrder(50, 0)
    assert order.at(0, 50) != order.at(50, 50)
    assert order.at(0, 50) != SampleOrder(50, 1).at(0, 50)


def test_the_number_of_batches_is_told_beforehand():
    batches = RankBatches(SampleOrder(10, 0), 0, 2, 3, 2, 0, 5)
    assert len(batches) == len(list(batches)) == 10


def test_steps_follow_from_epochs_unless_they_are_given():
    assert remaining_steps(100, 3, None, done=0, samples=0, per_step=8) == 37
    assert remaining_steps(100, 3, None, done=10, samples=80, per_step=8) == 27
    assert remaining_steps(100, 3, None, done=10, samples=80, per_step=16) == 13
    assert remaining_steps(100, 3, 12, done=10, samples=80, per_step=8) == 2
    assert remaining_steps(100, 3, 5, done=10, samples=80, per_step=8) == 0
    assert remaining_steps(100, 0.01, None, done=0, samples=0, per_step=8) == 1
