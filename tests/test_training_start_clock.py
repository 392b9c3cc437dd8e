"""Where the time of a start went."""

from training.start_clock import StartClock


def test_each_phase_has_its_seconds_and_the_first_counts_from_the_processs_beginning():
    times = iter((10.0, 12.0, 15.0))
    clock = StartClock(1.5, lambda: next(times))
    clock.ended("imports")
    clock.ended("group")
    assert clock.seconds == {"imports": 3.5, "group": 3.0}


def test_later_steps_are_no_part_of_the_start():
    times = iter((0.0, 1.0))
    clock = StartClock(0.0, lambda: next(times))
    clock.ended("first step")
    clock.ended("first step")
    assert clock.seconds == {"first step": 1.0}
