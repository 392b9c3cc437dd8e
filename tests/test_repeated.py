"""The same fault three times without progress."""

from typing import Any

import pytest

from cluster.repeated import same_fault_without_progress


def attempt(kind: str, summary: str = "", saved: int | None = None, last: int | None = None, **steps: Any) -> Any:
    verdict = {"kind": kind, "status": 1, "summary": summary, "host": steps.pop("host", None), "detail": ""}
    return {"verdict": verdict, "steps": {"resumed": None, "last": last, "saved": saved, **steps}}


def stuck(*attempts: Any) -> bool:
    return same_fault_without_progress(attempts, attempts[-1]["verdict"])


def test_two_times_are_not_enough() -> None:
    assert not stuck(*[attempt("rank crash", "raised ValueError: x")] * 2)


def test_the_same_crash_on_any_rank_at_any_step_is_the_same_fault() -> None:
    words = [f"raised IndexError: row {number} of 0x7f{number}a" for number in (1, 22, 333)]

    assert stuck(*(attempt("rank crash", said, saved=10, last=17) for said in words))


def test_a_checkpoint_more_is_progress() -> None:
    assert not stuck(*(attempt("rank crash", "killed by SIGKILL", saved=saved) for saved in (10, 10, 20)))


def test_a_checkpoint_more_before_the_first_of_the_three_is_none() -> None:
    first = attempt("rank crash", "boom", resumed=0, saved=100)

    assert stuck(first, attempt("rank crash", "boom", saved=100), attempt("rank crash", "boom", saved=100))


def test_where_nothing_is_ever_saved_the_last_step_counts() -> None:
    assert not stuck(*(attempt("rank crash", "boom", last=last) for last in (5, 7, 9)))
    assert stuck(*(attempt("rank crash", "boom", last=last) for last in (9, 7, 9)))


def test_another_fault_in_between_is_another_story() -> None:
    assert not stuck(attempt("rank crash", "a"), attempt("hang", "b"), attempt("rank crash", "a"))


def test_hosts_that_are_lost_one_after_another_are_different_faults() -> None:
    assert not stuck(*(attempt("node lost", "fell silent", host=host) for host in ("n1", "n2", "n3")))
    assert stuck(*(attempt("node lost", f"silent {n}", host="n2") for n in "abc"))


@pytest.mark.parametrize(("gained", "expected"), [((0, 0, 0), True), ((0, 3, 0), False)])
def test_saving_three_times_without_a_step_in_between_stops_the_requeues(
    gained: tuple[int, ...], expected: bool
) -> None:
    saved = [attempt("saved for requeue", resumed=10, saved=10 + more, last=10 + more) for more in gained]

    assert stuck(*saved) is expected


def test_a_job_whose_time_is_over_before_every_first_save_never_gets_on() -> None:
    assert stuck(*[attempt("time limit", resumed=None, last=7)] * 3)


def test_a_program_that_tells_no_steps_may_save_and_go_on_for_ever() -> None:
    assert not stuck(*[attempt("saved for requeue")] * 3)


def test_a_run_that_completed_or_was_cancelled_is_not_stuck() -> None:
    assert not stuck(*[attempt("complete")] * 3)
    assert not stuck(*[attempt("cancelled")] * 3)


def test_an_attempt_that_left_no_verdict_is_no_same_fault() -> None:
    assert not stuck(attempt("hang"), {"attempt": 2}, attempt("hang"))
