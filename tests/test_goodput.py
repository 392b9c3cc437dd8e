"""Every second of an attempt has a name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.goodput import PARTS, account, goodput_lines, totals

SECONDS = {"start": 2.0, "prepare": 3.0, "compile": 5.0, "train": 60.0, "evaluate": 4.0, "save": 1.0}


def beat(time: float, saved_train_seconds: float | None = 40.0, **seconds: float) -> dict[str, Any]:
    return {
        "phase": "train",
        "seconds": {**SECONDS, **seconds},
        "saved_train_seconds": saved_train_seconds,
        "time": time,
    }


def test_all_steps_of_an_attempt_that_ended_well_are_kept() -> None:
    parts = account(90.0, 100.0, 180.0, beat(178.0), kept=True)

    assert parts == {**SECONDS, "queue": 10.0, "start": 7.0, "train": 60.0, "lost": 0.0}


def test_a_failed_attempt_loses_the_steps_since_its_save_and_the_time_until_it_was_noticed() -> None:
    parts = account(90.0, 100.0, 185.0, beat(177.0), kept=False)

    assert parts == {**SECONDS, "queue": 10.0, "start": 4.0, "train": 40.0, "lost": 20.0 + 8.0}


def test_without_a_save_every_step_of_a_failed_attempt_is_lost() -> None:
    parts = account(None, 100.0, 185.0, beat(177.0, saved_train_seconds=None), kept=False)

    assert (parts["train"], parts["lost"], parts["queue"]) == (0.0, 68.0, 0.0)


def test_an_attempt_whose_program_never_spoke_was_all_start() -> None:
    assert account(None, 100.0, 130.0, None, kept=False) == {**dict.fromkeys(PARTS, 0.0), "start": 30.0}


@given(
    queued=st.none() | st.floats(0, 1e4),
    elapsed=st.floats(0, 1e6),
    told=st.lists(st.floats(0, 1e6), min_size=6, max_size=6),
    saved=st.none() | st.floats(0, 1e6),
    silent=st.floats(-10, 1e6),
    kept=st.booleans(),
)
def test_the_parts_sum_to_all_the_time_whatever_the_clocks_say(
    queued: float | None, elapsed: float, told: list[float], saved: float | None, silent: float, kept: bool
) -> None:
    launched, ended = 1e4, 1e4 + elapsed
    said = {"seconds": dict(zip(SECONDS, told, strict=True)), "saved_train_seconds": saved, "time": ended - silent}

    parts = account(queued, launched, ended, said, kept)

    waited = 0.0 if queued is None else launched - queued
    assert sum(parts.values()) == pytest.approx(waited + (ended - launched), abs=1e-3)
    assert min(parts.values()) >= -1e-6


def attempt(started: float, ended: float, queue: float = 0.0, **facts: Any) -> dict[str, Any]:
    parts = {**dict.fromkeys(PARTS, 0.0), "queue": queue, "train": ended - started}
    return {"started": started, "ended": ended, "accounting": parts, **facts}


@pytest.mark.parametrize("same", [{"job_id": "7"}, {"launch": "1790000000"}], ids=str)
def test_the_gap_before_a_requeue_or_a_restart_counts_as_queue(same: dict[str, str]) -> None:
    first, second = attempt(100.0, 200.0, 10.0, **same), attempt(260.0, 300.0, 0.0, **same)

    goodput = totals([first, second])

    assert (goodput.parts["queue"], goodput.parts["train"]) == (70.0, 140.0)
    assert goodput.restarts == 1


def test_the_queue_of_a_requeued_job_is_not_counted_from_its_first_submission() -> None:
    first, second = attempt(100.0, 200.0, 10.0, job_id="7"), attempt(260.0, 300.0, 170.0, job_id="7")

    assert totals([first, second]).parts["queue"] == 70.0


def test_the_night_before_somebody_submits_again_is_nobodys_time() -> None:
    first, second = attempt(100.0, 200.0, 10.0, job_id="7"), attempt(50_000.0, 50_100.0, 5.0, job_id="8")

    assert totals([first, second]).parts["queue"] == 15.0


def test_the_effective_share_is_given_with_and_without_the_queue() -> None:
    goodput = totals([attempt(100.0, 190.0, 10.0)])

    assert (goodput.effective, goodput.effective_running) == (0.9, 1.0)
    assert goodput_lines(goodput)[0] == (
        "effective training time 90.0% of 0:01:40 (100.0% without the queue), 0 restarts"
    )


def test_a_run_without_any_time_has_no_share() -> None:
    assert totals([{"attempt": 1, "started": 1.0}]).effective is None
    assert goodput_lines(totals([])) == []


def test_an_attempt_whose_end_nobody_wrote_down_leaves_no_gap_after_it() -> None:
    first, second = attempt(100.0, 200.0, 10.0, job_id="7"), attempt(260.0, 300.0, 5.0, job_id="7")
    del first["ended"]

    assert totals([first, second]).parts["queue"] == 15.0
