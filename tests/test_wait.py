"""Waiting for a job: until it has ended for good, or nobody knows it any more."""

from pathlib import Path

import pytest

from cluster import wait
from cluster.errors import LauncherError
from cluster.wait import wait_for_job
from stand_ins import stand_ins

STATES = """
echo >> {folder}/asked
case $(wc -l < {folder}/asked) in
    1) echo "JobId=12 JobState=PENDING Reason=Priority ExitCode=0:0" ;;
    2) echo "JobId=12 JobState=RUNNING Reason=None ExitCode=0:0"; echo "step 1" > {folder}/log ;;
    *) echo "JobId=12 JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0" ;;
esac"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm is asked again at once."""
    for name in ("LOOK_EVERY", "ASK_AT_LEAST", "ASK_AT_MOST"):
        monkeypatch.setattr(wait, name, 0.0)


def test_a_job_is_followed_from_the_queue_to_its_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, scontrol=STATES.format(folder=tmp_path)))

    assert wait_for_job("12", tmp_path / "log", follow=True) == 3

    lines = capfd.readouterr().out.splitlines()
    assert lines == ["job 12: pending (Priority)", "job 12: running", "step 1", "job 12: failed"]


def test_a_job_that_does_not_end_in_time_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, scontrol='echo "JobId=12 JobState=RUNNING ExitCode=0:0"'))

    with pytest.raises(TimeoutError, match=r"^job 12 has not ended after 0 s$"):
        wait_for_job("12", tmp_path / "log", follow=False, timeout=0)


def test_a_job_that_nobody_knows_any_more_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, scontrol="exit 1", sacct="exit 1"))
    monkeypatch.setattr(wait, "UNKNOWN_FOR", 0.0)

    with pytest.raises(LauncherError, match=r"^Slurm no longer knows job 12: its verdict is in run\.json beside "):
        wait_for_job("12", tmp_path / "log", follow=False)


def test_a_job_that_nobody_knows_for_a_moment_is_still_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = f"[ -e {tmp_path}/asked ] || {{ touch {tmp_path}/asked; exit 1; }}"
    shown = f"{back}; echo 'JobId=12 JobState=COMPLETED ExitCode=0:0'"
    monkeypatch.setenv("PATH", stand_ins(tmp_path, scontrol=shown, sacct="exit 1"))

    assert wait_for_job("12", tmp_path / "log", follow=False) == 0
