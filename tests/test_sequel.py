"""What follows a verdict."""

from typing import Any

import pytest

from cluster.sequel import END, REQUEUE, RESTART, Situation, sequel
from cluster.verdict import Verdict

IN_A_JOB = Situation(
    restarts=3,
    in_batch_body=True,
    hosts_left=2,
    hosts_needed=2,
    warned=False,
    stopped_for=None,
    mpirun_killed=False,
    cut_off=False,
)
BY_HAND = IN_A_JOB._replace(in_batch_body=False)


def verdict(kind: str, status: int = 137, host: str | None = "n2", summary: str = "was killed by SIGKILL") -> Verdict:
    return Verdict(kind, status, summary, rank=1, host=host)


def attempts(*saved: int | None, last: int = 90, kind: str = "rank crash", launch: str = "7") -> list[dict[str, Any]]:
    """Attempts of one job with their newest checkpoints; each but the last met another fault before."""
    return [
        {
            "attempt": number,
            "launch": launch,
            "steps": {"resumed": 0, "last": last, "saved": step},
            "verdict": {"kind": kind, "summary": f"fault {'x' * number}", "host": "n2"},
        }
        for number, step in enumerate(saved, 1)
    ]


@pytest.mark.parametrize("kind", ["rank crash", "out of memory", "hang"])
def test_a_fault_that_a_restart_may_cure_is_followed_by_one_in_the_same_allocation(kind: str) -> None:
    assert sequel(verdict(kind), attempts(50), IN_A_JOB).kind == RESTART


@pytest.mark.parametrize("kind", ["complete", "user error", "storage", "numeric", "cancelled", "launcher failed"])
def test_what_a_restart_cannot_cure_is_the_end(kind: str) -> None:
    assert sequel(verdict(kind), attempts(50), IN_A_JOB).kind == END


def test_mpirun_killed_by_somebody_else_is_started_again() -> None:
    assert sequel(verdict("launcher failed"), attempts(50), IN_A_JOB._replace(mpirun_killed=True)).kind == RESTART


def test_an_mpirun_that_cannot_start_what_it_started_before_is_tried_again() -> None:
    then = sequel(verdict("launcher failed", 70), attempts(50, None), IN_A_JOB)

    assert then.kind == RESTART


def test_a_lost_node_is_replaced_by_a_spare_one() -> None:
    then = sequel(verdict("node lost"), attempts(50), IN_A_JOB)

    assert (then.kind, then.exclude) == (RESTART, "n2")


def test_without_a_spare_node_the_job_is_queued_again_away_from_the_lost_one() -> None:
    then = sequel(verdict("node lost"), attempts(50), IN_A_JOB._replace(hosts_left=1))

    assert (then.kind, then.exclude) == (REQUEUE, "n2")


def test_without_a_spare_node_and_without_a_batch_job_a_lost_node_is_the_end() -> None:
    assert sequel(verdict("node lost"), attempts(50), BY_HAND._replace(hosts_left=1)).kind == END


def test_a_launcher_that_was_cut_off_leaves_the_job_to_slurm() -> None:
    assert sequel(verdict("node lost"), attempts(50), IN_A_JOB._replace(hosts_left=1, cut_off=True)).kind == END


def test_saved_on_a_warning_is_queued_again_only_in_a_batch_job() -> None:
    assert sequel(verdict("saved for requeue"), attempts(50), IN_A_JOB._replace(warned=True)).kind == REQUEUE
    assert sequel(verdict("saved for requeue"), attempts(50), BY_HAND._replace(warned=True)).kind == END


def test_scancel_after_the_warning_never_requeues() -> None:
    cancelled = IN_A_JOB._replace(warned=True, stopped_for="cancelled")

    assert sequel(verdict("saved for requeue"), attempts(50), cancelled).kind == END
    assert sequel(verdict("cancelled"), attempts(50), cancelled).kind == END


def test_a_save_that_was_slower_than_the_time_limit_is_queued_again_from_the_checkpoint_before() -> None:
    over = IN_A_JOB._replace(warned=True, stopped_for="time limit")

    assert sequel(verdict("time limit", 143), attempts(50), over).kind == REQUEUE
    assert sequel(verdict("saved for requeue"), attempts(50), over).kind == REQUEUE
    assert sequel(verdict("time limit", 143), attempts(50), IN_A_JOB._replace(stopped_for="time limit")).kind == END


def test_a_fault_after_the_warning_is_queued_again_because_this_allocation_ends_soon() -> None:
    assert sequel(verdict("rank crash"), attempts(50), IN_A_JOB._replace(warned=True)).kind == REQUEUE


def test_restarts_are_counted_since_the_newest_checkpoint() -> None:
    assert sequel(verdict("rank crash"), attempts(50, 50, 50, 50), IN_A_JOB).kind == END
    assert sequel(verdict("rank crash"), attempts(50, 50, 50, 60), IN_A_JOB).kind == RESTART
    assert sequel(verdict("rank crash"), attempts(50), IN_A_JOB._replace(restarts=0)).kind == END


def test_attempts_of_an_earlier_job_do_not_count() -> None:
    before = attempts(50, 50, 50, launch="6")

    assert sequel(verdict("rank crash"), [*before, *attempts(50)], IN_A_JOB).kind == RESTART


def test_the_same_fault_three_times_without_progress_ends_with_its_own_status() -> None:
    same = attempts(50, 50, 50)
    for attempt in same:
        attempt["verdict"] = verdict("rank crash")._asdict()

    then = sequel(verdict("rank crash"), same, IN_A_JOB)

    assert (then.kind, then.verdict.status, then.verdict.kind) == (END, 73, "no progress")
    assert then.verdict.rank == 1


def test_a_program_that_fails_twice_before_its_first_step_would_do_so_again() -> None:
    once, twice = attempts(None, last=0), attempts(None, None, last=0)

    assert sequel(verdict("rank crash", status=1), once, IN_A_JOB).kind == RESTART
    assert sequel(verdict("rank crash", status=1), twice, IN_A_JOB).kind == END
    assert sequel(verdict("rank crash", status=137), twice, IN_A_JOB).kind == RESTART


def test_a_program_without_heartbeats_is_restarted_as_often_as_was_asked() -> None:
    unknown = attempts(None, None)
    for attempt in unknown:
        attempt["steps"] = {"resumed": None, "last": None, "saved": None}

    assert sequel(verdict("rank crash", status=1), unknown, IN_A_JOB).kind == RESTART


def test_another_checkpoint_is_only_progress_where_it_is_newer() -> None:
    assert sequel(verdict("rank crash"), attempts(100, None, 100, None), IN_A_JOB).kind == END
