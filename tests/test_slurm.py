"""What Slurm's answers mean."""

from pathlib import Path

import pytest

from cluster import own_job, slurm
from cluster.jobs import Job, job_now, parse_detail
from cluster.requeue import hosts_to_avoid, requeue
from stand_ins import stand_ins

RUNNING = "JobState=RUNNING Reason=None Restarts=0 EndTime=2026-03-01T12:00:00 PreemptTime=None ExcNodeList=(null)"
NOON = own_job.queued_at("EligibleTime=2026-03-01T12:00:00")


def test_salloc_s_shell_is_no_batch_body_also_where_it_runs_on_the_first_node() -> None:
    shell = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "SLURM_JOB_NAME": "interactive"}

    assert own_job.in_batch_body(shell)
    assert not own_job.in_batch_body(shell | {"SLURM_STEP_ID": "4294967290"})
    assert own_job.job_name(shell | {"SLURM_STEP_ID": "4294967290"}) is None


def test_a_warning_shortly_before_the_jobs_end_is_for_its_time_limit() -> None:
    assert NOON is not None
    assert own_job.why_warned(RUNNING, NOON - 120) == "time limit"
    assert own_job.why_warned(RUNNING, NOON - 7200) == "signal"
    assert (
        own_job.why_warned(RUNNING.replace("PreemptTime=None", "PreemptTime=2026-03-01T11:00:00"), NOON) == "preempted"
    )
    assert own_job.why_warned(None, NOON) == "signal"


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        ("JobState=COMPLETING Reason=TimeLimit Restarts=0", "time limit"),
        ("JobState=COMPLETING Reason=None Restarts=0", "cancelled"),
        ("JobState=COMPLETING Reason=None Restarts=1", "preempted"),
        ("JobState=PREEMPTED Reason=None Restarts=0", "preempted"),
    ],
)
def test_why_a_job_is_stopped_is_told_by_its_state_at_that_moment(detail: str, reason: str) -> None:
    assert own_job.why_stopped(detail, restart_count=0) == reason


def fake_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, detail: str) -> Path:
    """A scontrol that shows this and writes down what else it is asked."""
    asked = folder / "asked"
    asked.touch()
    scontrol = f'if [ "$1" = show ]; then echo "{detail}"; else echo "$@" >> {asked}; fi'
    sinfo = "printf 'n1 idle\\nn2 comp\\nn3 mix\\nn4 idle*\\nn7 idle\\nn8 down\\n'"
    monkeypatch.setenv("PATH", stand_ins(folder, scontrol=scontrol, sinfo=sinfo))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return asked


def test_a_job_is_queued_again_away_from_a_host_and_from_those_it_avoids_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detail = RUNNING.replace("(null)", "n[7-8]") + " Partition=main NumNodes=1"
    asked = fake_scontrol(tmp_path, monkeypatch, detail)

    assert requeue("5", 0, 2, ["n2"]) is None

    assert asked.read_text() == "requeue 5\nupdate JobId=5 ExcNodeList=n7,n8,n2\n"


@pytest.mark.parametrize(
    ("lost", "needed", "avoided"),
    [
        (["n1"], 2, ["user", "n1"]),
        (["n1", "n2"], 2, ["user", "n1", "n2"]),
        (["n1", "n2", "n3"], 2, ["user", "n2", "n3"]),
        (["n1", "n2", "n1"], 3, ["user", "n1"]),  # n1 was lost last
        (["n1", "down", "n2", "n3"], 2, ["user", "down", "n2", "n3"]),  # letting in what is down would gain nothing
        (["n1"], 4, ["user"]),  # else it could never start again
        (["n1"], 9, ["user"]),
    ],
)
def test_a_job_is_kept_from_the_hosts_it_lost_but_never_from_so_many_that_it_cannot_start(
    lost: list[str], needed: int, avoided: list[str]
) -> None:
    usable = ["n1", "n2", "n3", "n4", "user"]
    assert hosts_to_avoid(["user", "n1"], [*lost], usable, needed) == avoided


@pytest.mark.parametrize("reason", ["JobState=COMPLETING Reason=None", "JobState=CANCELLED Reason=None"])
def test_a_cancelled_job_is_never_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    asked = fake_scontrol(tmp_path, monkeypatch, f"{reason} Restarts=0")

    assert requeue("5", 0, 2) == "it was cancelled"
    assert asked.read_text() == ""


def test_a_job_that_slurm_has_queued_again_itself_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_scontrol(tmp_path, monkeypatch, "JobState=RUNNING Reason=None Restarts=1")

    assert requeue("5", 0, 2) is None
    assert asked.read_text() == ""


def test_a_job_at_its_time_limit_may_still_be_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_scontrol(tmp_path, monkeypatch, "JobState=COMPLETING Reason=TimeLimit Restarts=0")

    assert requeue("5", 0, 2) is None
    assert asked.read_text() == "requeue 5\n"


def test_a_users_own_words_are_no_facts_of_the_job() -> None:
    detail = """\
JobId=7 JobName=a JobState=COMPLETED ExitCode=0:0
   UserId=u(1) JobState=FAILED Reason=NonZeroExitCode Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=3:0
   Command=/home/u/JobState=COMPLETED ExitCode=0:0
   WorkDir=/home/u/a JobState=COMPLETED
   Comment=x JobState=COMPLETED ExitCode=0:0
   StdOut=/home/u/ExitCode=0:0 JobState=COMPLETED
"""
    job = parse_detail(detail)
    assert (job.state, job.reason, job.exit_code, job.signal) == ("FAILED", "NonZeroExitCode", 3, 0)
    assert slurm.restarts("JobId=7 JobName=Restarts=9\n   Requeue=1 Restarts=2 BatchFlag=1") == 2


def test_accounting_tells_of_a_job_that_the_controller_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "printf 'NODE_FAIL|0:0\\nCANCELLED by 0|0:15\\n'"
    monkeypatch.setenv("PATH", stand_ins(tmp_path, scontrol="exit 1", sacct=rows))

    job = job_now("5")

    assert job == Job("CANCELLED", signal=15)
    assert job.exit_status == 143


def test_a_command_that_is_not_there_is_a_controller_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert slurm.test_only("#!/bin/sh\n") is None
    assert slurm.submit("#!/bin/sh\n", {"PATH": "/nowhere"})[1] is not None
    refused = slurm.cancel("5")
    assert refused is not None
    assert slurm.is_down(refused)


def test_hosts_that_slurm_calls_down_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, sinfo="printf 'n1 idle\\nn2 down*\\nn2 down*\\n'"))

    assert slurm.down_hosts(["n1", "n2"]) == ["n2"]


BACK_AT_THE_THIRD = """
echo >> {folder}/asked
[ $(wc -l < {folder}/asked) -ge 3 ] || exit 1
{answer}"""


def test_a_controller_that_is_down_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ASK_AGAIN_EVERY", 0.0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("time.sleep", lambda _: None)
    shows = BACK_AT_THE_THIRD.format(folder=tmp_path, answer="[ $1 != show ] || echo Restarts=1")
    monkeypatch.setenv("PATH", stand_ins(tmp_path, scontrol=shows))

    assert requeue("5", 0, 2) is None

    (tmp_path / "asked").unlink()
    pings = BACK_AT_THE_THIRD.format(folder=tmp_path, answer="echo Slurmctld is UP")
    stand_ins(tmp_path, scontrol=pings)
    slurm.wait_for_controller(lambda: False)
    assert (tmp_path / "asked").read_text().count("\n") == 3


def test_what_scontrol_says_against_a_requeue_is_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    says = f'if [ $1 = show ]; then echo "{RUNNING}"; else echo Access/permission denied >&2; exit 1; fi'
    monkeypatch.setenv("PATH", stand_ins(tmp_path, scontrol=says))

    assert requeue("5", 0, 2) == "Access/permission denied"
