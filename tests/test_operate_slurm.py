"""A run's life by name on a real Slurm: queued, running, looked into, cancelled, submitted again."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, Mpi
from slurm_lab import SlurmLab
from waiting import wait_until

SLEEPS = """
import os, time
print("ready on", os.environ["RANK"], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_run_is_queued_followed_looked_into_cancelled_and_submitted_again(
    slurm: SlurmLab, mpi: Mpi, tmp_path: Path
) -> None:
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    environ = {"PATH": f"{mpi.mpirun.parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "SHELL": "/bin/hostname"}
    log_dir = tmp_path / "outputs/sleeps/attempt-0001/logs"

    def cluster(*arguments: str, check: bool = True) -> Any:
        return slurm.run("ctl", [sys.executable, "-m", "cluster", *arguments], cwd=tmp_path, env=environ, check=check)

    def listed() -> dict[str, Any]:
        [run] = json.loads(cluster("status", "--json").stdout)["runs"]
        return dict(run)

    could = cluster("explain", "--nodes", "2", "--gpus", "2", "--", "-e", "sleeps").stdout
    could_not = cluster("explain", "--nodes", "99", "--gpus", "2", "--", "-e", "sleeps", check=False)
    submitted = cluster(
        *["submit", "--nodes", "2", "--ranks-per-node", "1", "--sbatch", "hold", "--program"],
        *["--", "python", "sleeps.py"],
    )
    job = submitted.stdout.partition("job ")[2].split()[0]
    queued = listed()
    slurm.run("ctl", ["scontrol", "release", job])
    wait_until(lambda: len([log for log in log_dir.glob("*.log") if log.read_text().startswith("ready")]) == 2)
    running = listed()
    logs = cluster("logs", job).stdout
    told = cluster("explain", job).stdout
    stacks = cluster("attach", "sleeps", "--stacks").stdout
    shell = cluster("attach", "sleeps", "--rank", "1").stdout
    refused = cluster("resubmit", "sleeps", check=False)
    cancelled = cluster("cancel", "sleeps").stdout
    over = listed()
    again = cluster("resubmit", "sleeps").stdout
    held_again = listed()
    dropped = cluster("cancel", held_again["job_id"]).stdout
    never_began = listed()

    assert "# sbatch --test-only accepts it: sbatch: Job " in could
    assert " to start at " in could
    assert "# sbatch --test-only refuses it: allocation failure: Requested node configuration" in could_not.stdout
    assert could_not.returncode == 64
    assert (queued["state"], queued["detail"], queued["job_id"]) == ("queued", "JobHeldUser", job)
    assert running["state"] == "running"
    assert sorted(logs.splitlines()) == ["0: ready on 0", "1: ready on 1"]
    host = json.loads((log_dir.parent / "plan.json").read_text())["hosts"][1][0]
    assert "#SBATCH --ntasks-per-node=1" in told
    assert f"rank 1 on {host}, GPU -, process" in told
    assert stacks.count("sleeps.py") == 2
    assert f"rank 1 on {host}:\n" in stacks
    assert shell.splitlines()[-1] == host
    assert "sleeps is running: it goes on by itself" in refused.stderr
    assert cancelled.splitlines()[0] == f"job {job} cancelled · sleeps: cancelled"
    assert over["state"] == "cancelled"
    assert f"job            {held_again['job_id']}" in again
    assert (held_again["state"], held_again["restarts"]) == ("queued", 0)
    assert f"job {held_again['job_id']} cancelled · sleeps: cancelled (before its launcher began)" in dropped
    assert never_began["state"] == "cancelled"


SAVES_ONCE = """
import os, signal, sys, time
attempt = os.environ["CLUSTER_ATTEMPT"]
print("begin", attempt, flush=True)
if attempt == "1":
    signal.signal(signal.SIGUSR1, lambda *_: (print("saved", flush=True), sys.exit(75)))
    time.sleep(600)
"""


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_logs_are_followed_through_a_real_requeue_to_the_end(slurm: SlurmLab, mpi: Mpi, tmp_path: Path) -> None:
    (tmp_path / "saves.py").write_text(SAVES_ONCE)
    environ = {"PATH": f"{mpi.mpirun.parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cluster", "submit", "--nodes", "1", "--ranks-per-node", "2", "--program"]
    said = slurm.run("ctl", [*command, "--", "python", "saves.py"], cwd=tmp_path, env=environ).stdout
    job = said.partition("job ")[2].split()[0]
    follow = [sys.executable, "-m", "cluster", "logs", job, "--follow", "-n", "all"]
    with (tmp_path / "shown").open("w") as shown:
        follower = slurm.start("ctl", follow, cwd=tmp_path, env=environ, stdout=shown, stderr=shown)
    wait_until(lambda: (tmp_path / "shown").read_text().count("begin 1") == 2)

    slurm.run("ctl", ["scancel", "--batch", "--signal=USR1", job])
    assert follower.wait(240) == 0

    lines = (tmp_path / "shown").read_text().splitlines()
    assert [sorted(line for line in lines if word in line) for word in ("begin 1", ": saved", "begin 2")] == [
        ["0: begin 1", "1: begin 1"],
        ["0: saved", "1: saved"],
        ["0: begin 2", "1: begin 2"],
    ]
    assert lines.index("── attempt 2") < lines.index("0: begin 2")
    assert lines[-1] == "── saves: complete"
