"""From records to one verdict."""

import signal
from pathlib import Path
from typing import Any

import pytest

from cluster.allocation import Allocation, Host
from cluster.decide import Witnesses, decide
from cluster.repeated import no_progress
from cluster.rundir import Attempt
from cluster.verdict import Verdict, next_command, verdict_lines

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


def test_an_mpirun_that_somebody_killed_is_the_launchers_failure() -> None:
    verdict = decide(seen(mpirun_status=-9, mpirun_log_tail="its last words"))

    assert (verdict.kind, verdict.status, verdict.summary) == ("launcher failed", 70, "mpirun was killed by SIGKILL")
    assert verdict.detail == "its last words"


def test_where_mpirun_does_not_say_which_daemon_ended_it_is_that_of_the_ranks_that_went_first() -> None:
    words = "srun returned non-zero exit status (35072) from launching the per-node daemon"
    its_own = [record(rank, "signal", 143, "SIGTERM", time_ns=100) for rank in (0, 1)]

    of_the_second_host = decide(seen(vanished=[2, 3], failed=its_own, mpirun_log_tail=words))
    of_the_first_host = decide(seen(failed=its_own, mpirun_log_tail=words))

    assert (of_the_second_host.kind, of_the_second_host.rank, of_the_second_host.host) == ("node lost", 2, "n2")
    assert of_the_second_host.summary.startswith("never ended: the host lost mpirun's daemon")
    assert "lost mpirun's daemon" not in of_the_first_host.summary


def test_a_process_that_mpirun_names_is_not_blamed_again_where_its_own_record_tells_more() -> None:
    words = "mpirun noticed that process rank 3 with PID 7 on node n2 exited on signal 9 (Killed)."

    verdict = decide(seen(failed=[record(3, "signal", 143, "SIGTERM")], vanished=[2], mpirun_log_tail=words))

    assert (verdict.kind, verdict.rank, verdict.summary) == ("rank crash", 2, "crashed: its watcher was killed")


def test_collectives_that_all_ranks_wait_in_at_one_step_have_no_guilty_rank() -> None:
    timed_out = "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"
    waiting = [{**record(rank, "exception", 1, timed_out), "step": 7} for rank in range(4)]

    verdict = decide(seen(failed=waiting))

    assert (verdict.kind, verdict.status, verdict.rank) == ("hang", 72, None)
    assert verdict.summary == "all ranks waited in collectives until the time-out: their calls differ"


def test_a_host_that_the_plan_does_not_have_is_lost_without_a_rank() -> None:
    verdict = decide(seen(lost_hosts=("n9",)))

    assert (verdict.kind, verdict.rank, verdict.host, verdict.summary) == ("node lost", None, "n9", "n9 fell silent")


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


def two_by_two(victims_words: str, **guilty: Any) -> list[dict[str, Any]]:
    """Rank 3's record, and one of each other rank that failed before it, with these words."""
    others = [record(rank, "exception", 1, victims_words, time_ns=100 + rank) for rank in range(3)]
    return [*others, {**record(3, time_ns=900), "step": 17, **guilty}]


@pytest.mark.parametrize(
    ("guilty", "kind", "status"),
    [
        ({"outcome": "signal", "status": 137, "detail": "SIGKILL", "oom_killed": True}, "out of memory", 137),
        ({"outcome": "signal", "status": 137, "detail": "SIGKILL", "oom_killed": False}, "rank crash", 137),
        ({"outcome": "signal", "status": 139, "detail": "SIGSEGV"}, "rank crash", 139),
        ({"outcome": "exception", "detail": "MemoryError"}, "out of memory", 1),
        ({"outcome": "exception", "detail": "torch.OutOfMemoryError: CUDA out of memory."}, "out of memory", 1),
        (
            {
                "outcome": "exception",
                "detail": "RuntimeError: [enforce fail at alloc_cpu.cpp:121] err == 0. "
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
            },
            "out of memory",
            1,
        ),
        ({"outcome": "exception", "detail": "x", "error": "training.errors.StorageError"}, "storage", 1),
        ({"outcome": "exception", "detail": "x", "error": "builtins.OSError", "errno": 28}, "storage", 1),
        ({"outcome": "exception", "detail": "OSError: [Errno 30] Read-only file system: 'a'"}, "storage", 1),
        ({"outcome": "exception", "detail": "OSError: [Errno 24] Too many open files: 'a'"}, "rank crash", 1),
        (
            {"outcome": "exception", "detail": "SafetensorError: No space left on device (os error 28)"},
            "storage",
            1,
        ),
        (
            {"outcome": "exception", "detail": "RuntimeError: PytorchStreamWriter failed writing file data/0: file"},
            "storage",
            1,
        ),
        ({"outcome": "exception", "detail": "FloatingPointError: the gradient's norm is nan"}, "numeric", 1),
        ({"outcome": "exception", "detail": "ValueError: boom"}, "rank crash", 1),
        ({"outcome": "exit", "status": 71, "detail": ""}, "node lost", 71),
    ],
    ids=str,
)
def test_the_kind_follows_from_what_the_guilty_rank_died_of(guilty: dict[str, Any], kind: str, status: int) -> None:
    failed = two_by_two("RuntimeError: Connection closed by peer", **{"status": 1, **guilty})

    verdict = decide(seen(failed=failed, mpirun_status=1))

    assert (verdict.kind, verdict.status, verdict.rank, verdict.host, verdict.gpu) == (kind, status, 3, "n2", "1")
    assert verdict.step == 17


CPP_BACKTRACE = """Traceback (most recent call last):
  File "train.py", line 7, in <module>
    dist.all_reduce(x)
    ~~~~~~~~~~~~~~~^^^
torch.distributed.DistBackendError: [1] is setting up NCCL communicator: {words}
Exception raised from recvBytes at ../torch/csrc/distributed/c10d/Utils.hpp:680 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x96 (0x7f5 in libc10.so)
frame #1: <unknown function> + 0x5f1 (0x7f6 in libtorch_cpu.so)
"""


@pytest.mark.parametrize(
    "words",
    [
        "Connection reset by peer",
        "Broken pipe",
        "Application timeout caused pair closure",
        "failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
        "recvValue failed on SocketImpl(fd=3): no error",
        "retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but store->get('0') got error",
        "wait timeout after 300000ms, keys: /0//cpu//0/0",
        "Timed out waiting 1800000ms for recv operation to complete",
        "The client socket has timed out after 60000ms while trying to connect to (n1, 20000)",
    ],
)
def test_a_victim_is_known_by_its_whole_message_not_by_the_last_line(words: str) -> None:
    assert decide(seen(failed=two_by_two(CPP_BACKTRACE.format(words=words), outcome="exit", status=3))).rank == 3


def test_the_abort_by_nccls_watchdog_is_a_victims_end() -> None:
    aborted = {
        **record(0, "signal", 134, "SIGABRT", time_ns=100),
        "output": "what():  [PG ID 0 PG GUID 0 Rank 0] Process group watchdog thread terminated with exception",
    }
    guilty = record(3, "signal", 139, "SIGSEGV", time_ns=900)

    assert decide(seen(failed=[aborted, guilty])).rank == 3


def test_of_two_failures_the_earlier_is_blamed() -> None:
    first = record(2, "exit", 3, time_ns=1_000_000_000)
    second = record(1, "exit", 4, time_ns=1_100_000_000)

    assert decide(seen(failed=[second, first])).rank == 2


def test_the_headline_is_the_exceptions_first_line_and_its_traceback_the_detail() -> None:
    detail = (
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\nValueError: boom\nwhy: because\n'
    )

    verdict = decide(seen(failed=[record(0, "exception", 1, detail)]))

    assert (verdict.summary, verdict.detail) == ("raised ValueError: boom", detail)


def test_the_rank_whose_loss_is_not_finite_is_blamed_though_all_ranks_refuse_the_update() -> None:
    words = "FloatingPointError: the loss is not finite at step 7 on rank 2; the weights were not updated"

    verdict = decide(seen(failed=[record(rank, "exception", 1, words, time_ns=rank) for rank in range(4)]))

    assert (verdict.kind, verdict.rank, verdict.host) == ("numeric", 2, "n2")


def test_a_host_that_fell_silent_is_blamed_not_the_ranks_that_noticed() -> None:
    noticed = [record(rank, "exception", 1, "RuntimeError: Connection reset by peer") for rank in (0, 1)]

    verdict = decide(seen(failed=noticed, lost_hosts=["n2"], last_steps={2: 9, 3: 9}, mpirun_status=-9))

    assert (verdict.kind, verdict.status, verdict.rank, verdict.host, verdict.step) == ("node lost", 71, 2, "n2", 9)
    assert verdict.summary == "never ended: the host fell silent (with ranks 2 to 3)"


def test_a_host_of_which_no_rank_was_ever_heard_did_not_fall_silent() -> None:
    verdict = decide(seen(started=[record(rank) for rank in (0, 1)], lost_hosts=["n2"], mpirun_status=-9))

    assert (verdict.kind, verdict.status, verdict.rank, verdict.host) == ("node lost", 71, 2, "n2")
    assert verdict.summary == "never began: the host was never heard (with ranks 2 to 3)"


def test_what_the_watchdog_says_stands_before_what_followed_when_it_ended_the_attempt() -> None:
    behind = {"rank": 1, "host": "n1", "gpu": "1", "step": 40, "summary": "made no step for 60 s", "stacks": "File …"}
    killed = [record(rank, "signal", 137, "SIGKILL") for rank in range(4)]

    verdict = decide(seen(hang=behind, failed=killed, mpirun_status=-15))

    assert verdict == Verdict("hang", 72, "made no step for 60 s", 1, "n1", "1", "File …", 40)


def test_where_ranks_waited_in_vain_in_a_collective_the_one_that_did_not_come_is_guilty() -> None:
    words = "RuntimeError: Timed out waiting 1800000ms for recv operation to complete"
    waited = [record(rank, "exception", 1, words, time_ns=100 + rank) for rank in (0, 1, 3)]
    torn_down = record(2, "signal", 137, "SIGKILL", time_ns=500)

    for failed in (waited, [*waited, torn_down]):
        verdict = decide(seen(failed=failed, mpirun_status=1))
        assert (verdict.kind, verdict.status, verdict.rank, verdict.host) == ("hang", 72, 2, "n2")


def test_where_all_waited_in_a_collective_the_rank_at_the_lowest_step_is_behind() -> None:
    words = "RuntimeError: Timed out waiting 1800000ms for recv operation to complete"
    waited = [{**record(rank, "exception", 1, words), "step": 8 if rank == 1 else 9} for rank in range(4)]

    assert (decide(seen(failed=waited)).kind, decide(seen(failed=waited)).rank) == ("hang", 1)


@pytest.mark.parametrize("words", ["", "mpirun noticed that process rank 2 with PID 9 on node n2 exited on signal 9"])
def test_a_watcher_that_was_killed_is_its_ranks_crash(words: str) -> None:
    ended = [record(rank, "signal", 143, "SIGTERM") for rank in (0, 1, 3)]

    verdict = decide(seen(failed=ended, vanished=[2], mpirun_status=137, mpirun_log_tail=words))

    assert (verdict.kind, verdict.status, verdict.rank, verdict.host) == ("rank crash", 137, 2, "n2")
    assert "its watcher was killed" in verdict.summary


def test_a_host_whose_watchers_all_vanished_first_is_lost() -> None:
    ended = [record(rank, "signal", 143, "SIGTERM") for rank in (0, 1)]

    verdict = decide(seen(failed=ended, vanished=[3, 2], mpirun_status=0))

    assert (verdict.kind, verdict.host, verdict.rank) == ("node lost", "n2", 2)


@pytest.mark.parametrize("name", ["[[31579,1],0]", "[prterun-n1-6091@1,0]"])
def test_a_rank_that_left_first_is_blamed_though_mpirun_killed_the_other_watchers(name: str) -> None:
    refused = record(0, "exception", 1, "urllib3.exceptions.ConnectionError: Connection refused: tracking.example.com")
    words = f"The first process to do so was:\n\n  Process name: {name}\n  Exit code:    1\n"

    verdict = decide(seen(failed=[refused], vanished=[1, 2, 3], mpirun_status=1, mpirun_log_tail=words))

    assert (verdict.kind, verdict.rank) == ("rank crash", 0)


def test_a_rank_that_died_with_its_daemon_is_no_crash_of_its_own() -> None:
    words = "  Remote daemon: [prterun-n1-1@0,1] on node n2\n"

    verdict = decide(seen(failed=[record(3, "signal", 137, "SIGKILL")], mpirun_log_tail=words))

    assert (verdict.kind, verdict.host) == ("node lost", "n2")


def test_an_mpirun_that_somebody_killed_is_named() -> None:
    verdict = decide(seen(vanished=[3, 2, 0, 1], mpirun_status=-9))

    assert (verdict.kind, verdict.status, verdict.summary) == ("launcher failed", 70, "mpirun was killed by SIGKILL")


LACKING = """--------------------------------------------------------------------------
mpirun was unable to launch the specified application as it could not access
or execute an executable:

Executable: /env/bin/python
Node: {node}

while attempting to start process rank 1.
"""


@pytest.mark.parametrize(("node", "kind", "status"), [("n2", "node lost", 71), ("n1", "launcher failed", 70)])
def test_an_interpreter_that_is_missing_on_another_host_is_that_hosts_fault(node: str, kind: str, status: int) -> None:
    words = LACKING.format(node=node)

    verdict = decide(seen(started=[record(0)], mpirun_status=132, mpirun_log_tail=words))

    assert (verdict.kind, verdict.status, verdict.host) == (kind, status, node)
    assert "/env/bin/python" in verdict.summary


def test_a_program_that_is_missing_on_another_host_is_that_hosts_fault() -> None:
    output = "error: cannot run /env/bin/python: No such file or directory"

    verdict = decide(seen(failed=[record(2, "exit", 127)], guilty_log_tail=output))

    assert (verdict.kind, verdict.host) == ("node lost", "n2")
    assert verdict.summary == "cannot run /env/bin/python: No such file or directory, which the first host has"


@pytest.mark.parametrize(
    "words",
    [
        "A daemon failed to report back after being spawned.\n\n  Local host:    n1\n  Remote host:   n2\n",
        "srun: error: n2: task 0: Exited with exit code 127",
        "srun: error: Task launch for StepId=7.0 failed on node n2: Communication connection failure",
    ],
)
def test_a_host_on_which_slurm_could_not_start_mpiruns_daemon_is_lost(words: str) -> None:
    verdict = decide(seen(started=[], mpirun_status=127, mpirun_log_tail=words))

    assert (verdict.kind, verdict.status, verdict.host) == ("node lost", 71, "n2")
    assert "before any rank began" in verdict.summary


def test_a_program_that_leaves_with_127_itself_lacks_nothing() -> None:
    verdict = decide(seen(failed=[record(2, "exit", 127)], guilty_log_tail="error: no such option"))

    assert (verdict.kind, verdict.status, verdict.summary) == ("rank crash", 127, "left with exit status 127")


def test_a_host_that_the_preflight_refuses_is_named_with_its_reason() -> None:
    verdict = decide(seen(started=[], unfit=[("n2", "has torch 2.11, n1 has 2.13")], mpirun_status=0))

    assert (verdict.kind, verdict.status, verdict.host) == ("node lost", 71, "n2")
    assert verdict.summary == "n2 has torch 2.11, n1 has 2.13"


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"stop_reason": "time limit"}, "time limit"),
        ({"stop_reason": "preempted"}, "preempted"),
        ({"stop_reason": "cancelled", "warned_by": "time limit"}, "cancelled"),
        ({"warned_by": "time limit"}, "time limit"),
        ({"warned_by": "Ctrl-C"}, "cancelled"),
    ],
    ids=str,
)
def test_what_stopped_the_attempt_is_its_kind(facts: dict[str, Any], kind: str) -> None:
    verdict = decide(seen(failed=[record(0, "signal", 143, "SIGTERM")], stopped_by=signal.SIGTERM, **facts))

    assert (verdict.kind, verdict.status) == (kind, 143)


def test_a_saved_attempt_says_at_which_step_and_why() -> None:
    verdict = decide(seen(saved=[{**record(r, "saved", 75), "step": 40} for r in range(4)], warned_by="time limit"))

    assert verdict.summary == "the program saved its state at step 40 and stopped, as it was asked to (time limit)"


def test_the_third_same_fault_keeps_the_guilty_rank_and_ends_with_73() -> None:
    verdict = no_progress(decide(seen(failed=[record(3, "exit", 3)], guilty_log_tail="words")))

    assert (verdict.kind, verdict.status, verdict.rank, verdict.host) == ("no progress", 73, 3, "n2")
    assert verdict.summary == "left with exit status 3 (rank crash, 3 times without progress)"
    assert verdict.detail.endswith("words")


@pytest.mark.parametrize(
    ("verdict", "advice"),
    [
        (Verdict("node lost", 71, "silent", 3, "n2"), "scontrol show node n2; then sbatch --exclude=n2 …"),
        (Verdict("storage", 1, "full", 3, "n2"), "df -h /out/a; df -i /out/a"),
        (Verdict("out of memory", 137, "killed", 3, "n2"), "sbatch --mem=… with more than now"),
        (Verdict("out of memory", 1, "CUDA", 3, "n2"), "less /out/a/attempt-0002/logs/rank-3.log"),
        (Verdict("hang", 72, "behind", 3, "n2"), "less /out/a/attempt-0002/logs/rank-3.log"),
        (
            Verdict("storage", 1, "full", 3, "n2", detail="TakenOverError: x"),
            "python -m cluster status /out/a; the newer",
        ),
        (Verdict("preempted", 143, "over"), "Slurm queues the job again, and it goes on from its last checkpoint"),
        (Verdict("time limit", 143, "over"), "submit the same command again, it goes on from its last checkpoint"),
        (Verdict("no progress", 73, "again"), "python -m cluster status /out/a"),
        (Verdict("launcher failed", 70, "no"), "less /out/a/attempt-0002/mpirun.log"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_in_slurm_the_next_command_can_be_typed(verdict: Verdict, advice: str) -> None:
    said = next_command(verdict, ATTEMPT, requeue=False, in_slurm=True)

    assert said is not None
    assert said.startswith(advice)


def test_a_rank_that_completed_while_others_still_worked_with_it_is_blamed() -> None:
    early = {"rank": 0, "host": "n1", "time_ns": 1, "status": 0, "outcome": "complete", "detail": "", "gpu": "0"}
    peer_gone = "RuntimeError: Connection closed by peer"
    failed = [
        {"rank": rank, "host": "n2", "gpu": "1", "time_ns": 5, "outcome": "exception", "status": 1, "detail": peer_gone}
        for rank in (1, 2, 3)
    ]

    verdict = decide(seen(complete=[early], failed=failed, mpirun_status=1))

    assert (verdict.kind, verdict.rank, verdict.status) == ("rank crash", 0, 1)
    assert verdict.summary == "completed while other ranks still worked with it"


def test_a_job_that_queues_itself_again_is_not_to_be_submitted_by_hand() -> None:
    attempt = Attempt(1, Path("/r"), Path("/r/attempt-0001"), Path("/r/attempt-0001/logs"))

    assert str(next_command(Verdict("node lost", 71, "", host="n2"), attempt, requeue=True)).startswith(
        "the job queues"
    )
