"""The learning rate over a run."""

import pytest

from training.errors import InputError
from training.schedule import learning_rate, warmup_steps


def rates(shape, total=100, warmup=10):
    return [learning_rate(step, total, warmup, 1.0, shape) for step in range(total)]


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_the_rate_rises_in_equal_parts_to_its_peak(shape):
    assert rates(shape)[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_rate_falls_to_nearly_zero_at_the_last_step_and_never_climbs(shape):
    after = rates(shape)[10:]
    assert after == sorted(after, reverse=True)
    assert 0 < after[-1] < 0.02


def test_a_cosine_is_at_half_its_peak_half_way():
    assert learning_rate(55, 100, 10, 2.0, "cosine") == pytest.approx(1.0)


def test_a_constant_rate_stays():
    assert set(rates("constant")[10:]) == {1.0}


def test_the_warm_up_is_3_percent_unless_it_is_given():
    assert warmup_steps(None, 1000) == 30
    assert warmup_steps(0, 1000) == 0
    with pytest.raises(InputError, match=r"--warmup-steps 20: the whole run has only 8 steps"):
        warmup_steps(20, 8)
