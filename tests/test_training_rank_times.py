"""How long each rank was busy: told in a message of bounded size, kept in a file."""

import json
from pathlib import Path

import pytest

from training.rank_times import ROOM, RankTimes, read_times, tell_time
from training.ranks import RankInfo
from training.run_directory import RunDirectory
from training.run_log import RunLog


def told_together(step: int, world_size: int, log_freq: int) -> list[float]:
    """What comes out where rank r was busy for r + 0.5 seconds."""
    parts = [tell_time(rank + 0.5, step, rank, world_size, log_freq) for rank in range(world_size)]
    return [sum(place) for place in zip(*parts, strict=True)]


@pytest.mark.parametrize("world_size", [1, 4, ROOM])
def test_up_to_64_ranks_are_told_at_every_step(world_size: int):
    times = read_times(told_together(7, world_size, 1), 7, world_size, 1)
    assert times == RankTimes(7, 0, tuple(rank + 0.5 for rank in range(world_size)))


@pytest.mark.parametrize("log_freq", [1, 3, 10])
def test_more_ranks_take_turns_and_each_has_its_turn_in_the_logged_steps(log_freq: int):
    seen: dict[int, float] = {}
    for step in range(log_freq, 4 * log_freq, log_freq):
        message = told_together(step, 150, log_freq)
        assert len(message) == ROOM
        times = read_times(message, step, 150, log_freq)
        seen |= {times.first_rank + place: seconds for place, seconds in enumerate(times.busy_seconds)}
    assert seen == {rank: rank + 0.5 for rank in range(150)}


def test_the_file_has_the_steps_that_are_logged_and_forgets_those_that_were_lost(tmp_path: Path):
    run = RunDirectory(tmp_path)
    for done, steps in ((0, range(1, 8)), (4, range(5, 7))):
        with RunLog(run, done, 9, 2, RankInfo("single")) as log:
            log.rank_times(None)
            for step in steps:
                log.rank_times(RankTimes(step, 0, (done + 0.1, 0.2)))
    rows = [json.loads(line) for line in run.rank_times.read_text().splitlines()]
    assert rows == [
        {"step": 2, "first_rank": 0, "busy_seconds": [0.1, 0.2]},
        {"step": 4, "first_rank": 0, "busy_seconds": [0.1, 0.2]},
        {"step": 6, "first_rank": 0, "busy_seconds": [4.1, 0.2]},
    ]
