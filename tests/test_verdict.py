"""From records to one verdict."""

import signal
from pathlib import Path
from typing import Any

import pytest

from cluster.allocation import Allocation, Host
from cluster.rundir import Attempt
from cluster.verdict import Verdict, Witnesses, decide, verdict_lines

TWO_BY_TWO = Allocation("slurm", (Host("n1", 2, 2, 4), Host("n2", 2, 2, 4)))
ATTEMPT = Attempt(2, Path("/out/a"), Path("/out/a/attempt-0002"), Path("/out/a/attempt-0002/logs"))


def record(rank: int, outcome: str = "complete", status: int = 0, detail: str = "", time_ns: int = 0) -> dict[str, Any]:
    host = TWO_BY_TWO.place(rank).host
    return {
        "rank": rank,
        "host": host,
        "gpu": str(rank % 2),
        "outcome": outcome,
        "status": status,
        "detail": detail,
        "time_ns": time_ns,
    }


def seen(**changes: Any) -> Witnesses:
    facts: dict[str, Any] = {
        "allocation": TWO_BY_TWO,
        "started": [record(rank) for rank in range(4)],
        "complete": [],
        "saved": [],
        "failed": [],
        "mpirun_status": 0,
        "mpirun_log_tail": "",
    }
    return Witnesses(**{**facts, **changes})


def test_success_is_what_every_rank_proved() -> None:
    verdict = decide(seen(complete=[record(rank) for rank in range(4)]))

    assert (verdict.kind, verdict.status) == ("complete", 0)


def test_success_stands_even_if_mpirun_had_to_be_killed_after_it() -> None:
    assert decide(seen(complete=[record(rank) for rank in range(4)], mpirun_status=-15)).status == 0


def test_mpiruns_zero_is_no_success_where_a_rank_is_silent() -> None:
    verdict = decide(seen(complete=[record(0), record(1), record(2)], mpirun_log_tail="a daemon was lost"))

    assert (verdict.kind, verdict.status, verdict.rank, verdict.host) == ("node lost", 71, 3, "n2")
    assert verdict.summary == "began but never ended, though mpirun ended with status 0"


def test_the_host_that_mpirun_lost_is_named_before_its_own_victims() -> None:
    words = "  HNP daemon   : [x@0,0] on node n1\n  Remote daemon: [x@0,1] on node n2\n"

    killed = decide(seen(mpirun_log_tail=words))
    terminated = decide(seen(failed=[record(0, "signal", 143, "SIGTERM")], mpirun_log_tail=words))

    for verdict in (killed, terminated):
        assert (verdict.kind, verdict.status, verdict.rank, verdict.host) == ("node lost", 71, 2, "n2")


@pytest.mark.parametrize(
    "victims_words",
    [
        "RuntimeError: [enforce fail] gloo/transport/tcp/pair.cc:534 Connection closed by peer [10.0.0.2]:4711",
        "torch.distributed.DistBackendError: NCCL error: ncclRemoteError: A call failed, possibly by the network",
        "training.errors.PeerError: rank 0 failed: ValueError: boom",
    ],
)
def test_a_rank_whose_peer_has_gone_is_never_blamed_for_it(victims_words: str) -> None:
    victim = record(0, "exception", 1, victims_words, time_ns=100)
    guilty = record(3, "exception", 1, "ValueError: boom", time_ns=900)

    assert decide(seen(failed=[victim, guilty])).rank == 3
    assert decide(seen(failed=[victim])).kind == "node lost"  # the others are silent, and rank 0 noticed


def test_mpiruns_own_sigterm_is_never_the_beginning() -> None:
    early = record(0, "signal", 143, "SIGTERM", time_ns=100)
    late = record(2, "signal", 137, "SIGKILL", time_ns=200)

    assert decide(seen(failed=[early, late])).rank == 2


def test_a_rank_that_somebody_terminated_is_blamed_where_none_is_silent() -> None:
    ended = [record(rank, "signal", 143, "SIGTERM", time_ns=100 - rank) for rank in range(4)]

    assert decide(seen(failed=ended)).rank == 3


def test_the_first_failure_is_blamed_not_its_victims() -> None:
    victim = record(0, "exception", 1, "Traceback …\nRuntimeError: Connection reset by peer", time_ns=200)
    guilty = record(3, "exception", 1, "Traceback …\nValueError: boom", time_ns=100)

    verdict = decide(seen(failed=[victim, guilty], mpirun_status=1))

    assert (verdict.rank, verdict.host, verdict.gpu) == (3, "n2", "1")
    assert verdict.summary == "raised ValueError: boom"


@pytest.mark.parametrize(
    ("outcome", "status", "detail", "kind", "summary"),
    [
        ("exit", 3, "", "rank crash", "left with exit status 3"),
        ("signal", 139, "SIGSEGV", "rank crash", "was killed by SIGSEGV"),
        (
            "incomplete",
            1,
            "left with exit status 0 before the program had ended",
            "rank crash",
            "left with exit status 0 before the program had ended",
        ),
        ("exit", 64, "", "user error", "refused its arguments"),
    ],
)
def test_the_first_failing_ranks_own_status_is_the_jobs(
    outcome: str, status: int, detail: str, kind: str, summary: str
) -> None:
    verdict = decide(seen(failed=[record(1, outcome, status, detail)], guilty_log_tail="error: no such dataset"))

    assert (verdict.kind, verdict.status, verdict.summary) == (kind, status, summary)
    assert verdict.detail.endswith("error: no such dataset")


def test_a_rank_in_the_wrong_place_is_the_launchers_failure() -> None:
    verdict = decide(seen(failed=[record(2, "mismatch", 70, "should be on n2 by the plan")]))

    assert (verdict.kind, verdict.status, verdict.rank) == ("launcher failed", 70, 2)
    assert verdict.summary == "should be on n2 by the plan"


def test_saving_counts_only_when_every_rank_saved() -> None:
    assert decide(seen(saved=[record(rank, "saved", 75) for rank in range(4)])).status == 75
    assert decide(seen(saved=[record(rank, "saved", 75) for rank in range(3)])).status == 71


def test_where_no_rank_began_mpiruns_own_words_are_shown() -> None:
    verdict = decide(seen(started=[], mpirun_status=213, mpirun_log_tail="There are not enough slots"))

    assert (verdict.kind, verdict.status, verdict.detail) == ("launcher failed", 70, "There are not enough slots")


def test_a_cancelled_attempt_says_by_which_signal() -> None:
    killed = [record(rank, "signal", 143, "SIGTERM") for rank in range(4)]

    verdict = decide(seen(failed=killed, stopped_by=signal.SIGTERM))

    assert (verdict.kind, verdict.status) == ("cancelled", 143)
    assert "SIGTERM reached the launcher" in verdict.summary


def test_the_traceback_is_the_end_of_the_log() -> None:
    verdict = Verdict("rank crash", 1, "raised ValueError: boom", 3, "n2", "1", "Traceback:\n  …\nValueError: boom\n")

    assert verdict_lines(verdict, ATTEMPT, 83.2, requeue=False) == [
        "── rank crash · exit status 1 · attempt 2 · 0:01:23 · /out/a",
        "next: less /out/a/attempt-0002/logs/rank-3.log",
        "rank 3 on n2, GPU 1 raised ValueError: boom",
        "Traceback:",
        "  …",
        "ValueError: boom",
    ]


@pytest.mark.parametrize(
    ("verdict", "requeue", "advice"),
    [
        (Verdict("saved for requeue", 75, "saved"), True, "the job queues itself again (if Slurm refuses: submit the"),
        (Verdict("saved for requeue", 75, "saved"), False, "submit the same command again, it goes on"),
        (Verdict("node lost", 71, "silent", 3, "n2"), False, "less /out/a/attempt-0002/mpirun.log"),
    ],
)
def test_the_next_command_is_said(verdict: Verdict, requeue: bool, advice: str) -> None:
    assert verdict_lines(verdict, ATTEMPT, 1.0, requeue)[1].startswith(f"next: {advice}")
