"""Who is silent, who hangs, who is slow, from what the launcher heard."""

from typing import Any

import pytest

from cluster.watchdog import (
    LONGEST_STEPS,
    SILENCE,
    WINDOW,
    WINDOWS,
    RankView,
    blame_hang,
    hangs,
    silent_hosts,
    stragglers,
)

TIMEOUT = 60.0


def beat(step: int = 10, phase: str = "train", at: str = "backward", **changes: Any) -> dict[str, Any]:
    return {
        "phase": phase,
        "step": step,
        "at": at,
        "resumed_step": 0,
        "step_seconds": 1.0,
        "busy_seconds": 0.5 * step,
        **changes,
    }


def view(rank: int, *beats: dict[str, Any], at: float = 0.0, state: str = "S") -> RankView:
    """A rank of two on each host, whose beats all came at one time."""
    seen = RankView(rank, f"n{rank // 2 + 1}", heard_at=at, moved_at=at)
    for one in beats:
        seen.hear({"beat": one, "state": state}, at)
    return seen


def world(*beats: dict[str, Any]) -> list[RankView]:
    return [view(rank, one) for rank, one in enumerate(beats)]


def test_a_rank_without_a_heartbeat_has_come_less_far_than_all_others() -> None:
    views = [view(0, beat()), view(1)]
    for one in views:
        one.hear({"stacks": "in waits"}, TIMEOUT)

    assert blame_hang(views) == (1, "is behind: somewhere of step 1, which others have passed")


def test_a_host_is_lost_only_when_none_of_its_ranks_is_heard() -> None:
    views = [view(0, beat()), view(1, beat(), at=100.0), view(2, beat()), view(3, beat())]

    assert silent_hosts(views, now=SILENCE + 1) == ["n2"]
    assert silent_hosts(views, now=SILENCE - 1) == []


def test_no_progress_for_longer_than_the_time_out_is_a_hang() -> None:
    views = world(beat(), beat(), beat(), beat())

    assert not hangs(views, TIMEOUT - 1, TIMEOUT)
    assert hangs(views, TIMEOUT + 1, TIMEOUT)


def test_one_rank_that_still_moves_is_no_hang() -> None:
    views = [*world(beat(), beat()), view(2, beat(11), at=TIMEOUT)]

    assert not hangs(views, TIMEOUT + 1, TIMEOUT)


def test_long_steps_are_waited_for_ten_times() -> None:
    views = world(beat(step_seconds=30.0), beat(step_seconds=20.0))

    assert not hangs(views, LONGEST_STEPS * 30.0 - 1, TIMEOUT)
    assert hangs(views, LONGEST_STEPS * 30.0 + 1, TIMEOUT)


def test_before_the_step_time_is_known_ten_time_outs_are_waited() -> None:
    views = world(beat(step=51, resumed_step=50), beat(step=51, resumed_step=50))

    assert not hangs(views, LONGEST_STEPS * TIMEOUT - 1, TIMEOUT)
    assert hangs(views, LONGEST_STEPS * TIMEOUT + 1, TIMEOUT)


@pytest.mark.parametrize("phase", ["start", "prepare", "compile", "evaluate", "save"])
def test_what_is_not_training_takes_the_time_it_takes(phase: str) -> None:
    views = world(beat(), beat(phase=phase, at=""))

    assert not hangs(views, 1e6, TIMEOUT)


def test_a_process_that_stays_stopped_hangs_in_every_phase() -> None:
    views = [view(0, beat(phase="evaluate", at="")), view(1, beat(phase="evaluate", at=""), state="T")]

    assert not hangs(views, TIMEOUT - 1, TIMEOUT)
    assert hangs(views, TIMEOUT + 1, TIMEOUT)


def test_a_process_that_was_only_stopped_for_a_moment_is_left_alone() -> None:
    stopped = view(1, beat(phase="evaluate", at=""), state="T")
    stopped.hear({"beat": None, "state": "S"}, 10.0)

    assert not hangs([view(0, beat(phase="evaluate", at="")), stopped], 1e6, TIMEOUT)


def test_a_program_without_heartbeats_is_never_judged_by_them() -> None:
    assert not hangs([view(0), view(1)], 1e6, TIMEOUT)


FRAME = 'Current thread 0x00007f (most recent call first):\n  File "{file}", line {line} in {name}\n'


def answered(seen: RankView, file: str, line: int = 1, name: str = "f") -> RankView:
    seen.stacks = FRAME.format(file=file, line=line, name=name)
    return seen


def test_the_stopped_rank_is_blamed_not_those_that_wait_for_it() -> None:
    views = [view(0, beat(at="agree")), view(1, beat(at="agree")), view(2, beat(at="agree"), state="T")]

    guilty = blame_hang(views)

    assert guilty.rank == 2
    assert "is stopped" in guilty.summary


@pytest.mark.parametrize(
    "beats",
    [
        [beat(11), beat(11), beat(10), beat(11)],
        [beat(at="backward"), beat(at="backward"), beat(at="forward"), beat(at="backward")],
    ],
    ids=["a step behind", "a place behind"],
)
def test_the_rank_that_is_behind_is_blamed(beats: list[dict[str, Any]]) -> None:
    guilty = blame_hang(world(*beats))

    assert guilty.rank == 2
    assert guilty.summary.startswith("is behind: in ")


def test_one_rank_that_has_gone_ahead_alone_is_the_odd_one() -> None:
    views = world(beat(), beat(), beat(), beat(11, at="data"))
    for seen in views[:3]:
        answered(seen, "torch/autograd/graph.py", name="_engine_run_backward")
    answered(views[3], "torch/distributed/distributed_c10d.py", name="all_reduce")

    assert blame_hang(views).rank == 3


def test_at_equal_progress_the_rank_with_another_stack_is_blamed() -> None:
    views = world(beat(), beat(), beat())
    answered(views[0], "torch/autograd/graph.py", name="_engine_run_backward")
    answered(views[1], "model.py", 7, "spin")
    answered(views[2], "torch/autograd/graph.py", name="_engine_run_backward")

    guilty = blame_hang(views)

    assert guilty.rank == 1
    assert guilty.summary == 'stands elsewhere than the others: File "model.py", line 7 in spin'


def test_of_two_ranks_the_one_that_does_not_wait_is_blamed() -> None:
    views = world(beat(), beat())
    answered(views[0], "torch/autograd/graph.py", name="_engine_run_backward")
    answered(views[1], "model.py")

    assert blame_hang(views).rank == 1


def test_a_rank_whose_watcher_does_not_answer_is_named() -> None:
    views = [answered(view(0, beat(), at=100.0), "a.py"), view(1, beat(), at=90.0)]

    guilty = blame_hang(views)

    assert guilty.rank == 1
    assert "does not answer" in guilty.summary


def worked(rank: int, *seconds_per_step: float) -> RankView:
    """A rank whose own work took so long per step, window after window."""
    seen = RankView(rank, "n1")
    step, busy = 0, 0.0
    seen.hear({"beat": beat(step, busy_seconds=busy)}, 0.0)
    for seconds in seconds_per_step:
        step, busy = step + WINDOW, busy + WINDOW * seconds
        seen.hear({"beat": beat(step, busy_seconds=busy)}, 0.0)
    return seen


def test_a_rank_that_is_slow_window_after_window_is_a_straggler() -> None:
    views = [*(worked(rank, *[0.1] * WINDOWS) for rank in range(3)), worked(3, *[0.3] * WINDOWS)]

    assert stragglers(views) == {3: pytest.approx(3.0)}


def test_one_slow_window_is_a_busy_moment_not_a_straggler() -> None:
    views = [*(worked(rank, *[0.1] * WINDOWS) for rank in range(3)), worked(3, *[0.1] * (WINDOWS - 1), 0.9)]

    assert stragglers(views) == {}


def test_all_ranks_slow_alike_have_no_straggler() -> None:
    assert stragglers([worked(rank, 0.1, 0.9, 3.0) for rank in range(4)]) == {}
