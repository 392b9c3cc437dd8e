"""When a checkpoint is due."""

import math

import pytest

from training.errors import InputError
from training.interval import (
    AUTO_LEAST_SECONDS,
    AUTO_MOST_SECONDS,
    Interval,
    SaveCost,
    auto_seconds,
    is_due,
    mtbf_seconds,
    parse_interval,
)


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("500", Interval(steps=500)),
        ("0", Interval()),
        ("10m", Interval(seconds=600)),
        ("1.5h", Interval(seconds=5400)),
        ("30s", Interval(seconds=30)),
        ("auto", Interval(auto=True)),
    ],
)
def test_an_interval_is_steps_or_a_time_or_automatic(text: str, interval: Interval):
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["", "-1", "ten", "10 m", "0m", "1.5", "m", "10d"])
def test_anything_else_is_refused_with_what_is_wanted(text: str):
    with pytest.raises(InputError, match=r"--ckpt-freq .*: a number of steps \(500\), of minutes \(10m; s and h too\)"):
        parse_interval(text)


def due(interval: Interval, step: int = 1, since: float = 0.0, cost: float | None = None, busy: bool = False) -> bool:
    return is_due(interval, step, since, cost, duration=0.0, mtbf=3600.0, busy=busy)


def test_steps_are_counted_from_the_beginning_of_the_run():
    assert [step for step in range(1, 10) if due(Interval(steps=3), step)] == [3, 6, 9]


def test_a_step_count_is_kept_also_while_a_save_is_being_written():
    assert due(Interval(steps=3), 3, busy=True)


def test_a_time_is_counted_from_the_last_save():
    assert not due(Interval(seconds=600), since=599)
    assert due(Interval(seconds=600), since=600)


def test_a_time_that_has_passed_while_a_save_is_being_written_waits_for_its_end():
    assert not due(Interval(seconds=600), since=700, busy=True)


def test_without_an_interval_none_is_due_before_the_end():
    assert not due(Interval(), step=10**6, since=10**9)


def test_the_automatic_interval_follows_youngs_rule():
    assert auto_seconds(cost=2.0, duration=3.0, mtbf=36000.0) == pytest.approx(math.sqrt(2 * 2.0 * 36000.0))


def test_the_automatic_interval_has_a_least_and_a_largest_value():
    assert auto_seconds(cost=1e-6, duration=0.0, mtbf=10.0) == AUTO_LEAST_SECONDS
    assert auto_seconds(cost=10.0, duration=0.0, mtbf=1e9) == AUTO_MOST_SECONDS


def test_a_slow_disk_is_not_written_to_all_the_time():
    assert auto_seconds(cost=0.1, duration=500.0, mtbf=10.0) == 1000.0


def test_the_first_save_comes_early_because_its_cost_is_not_known():
    assert not due(Interval(auto=True), since=AUTO_LEAST_SECONDS - 1)
    assert due(Interval(auto=True), since=AUTO_LEAST_SECONDS)


def test_faults_come_in_proportion_to_the_number_of_ranks_unless_told_otherwise():
    assert mtbf_seconds(None, 1024) == 8 * 3600
    assert mtbf_seconds(None, 16384) == 0.5 * 3600
    assert mtbf_seconds(24, 16384) == 24 * 3600


def test_the_cost_of_a_save_is_its_standstill_and_what_it_slowed_the_steps():
    cost = SaveCost()
    for _ in range(5):
        cost.step(1.0, writing=False)
    cost.begin(blocking=0.5)
    for seconds in (1.25, 1.25, 0.9):
        cost.step(seconds, writing=True)
    assert cost.seconds == pytest.approx(1.0)
    cost.begin(blocking=0.25)
    assert cost.seconds == 0.25
