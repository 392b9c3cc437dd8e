"""The cluster of the tests is a cluster: hosts apart from each other, and Slurm doing what Slurm does."""

import subprocess
import sys
from pathlib import Path

import pytest

import slurm_lab
from slurm_lab import SlurmLab
from waiting import is_gone, wait_until


def test_every_host_has_its_own_name_and_address(slurm: SlurmLab) -> None:
    for host in slurm.hosts:
        assert slurm.run(host, ["hostname"]).stdout == f"{host}\n"
        assert slurm.address(host) in slurm.run(host, ["ip", "-4", "address", "show", "eth0"]).stdout


def test_hosts_reach_each_other_by_name(slurm: SlurmLab) -> None:
    for other in slurm.hosts:
        assert answers(slurm, "w1", other)


def test_a_command_starts_in_the_callers_folder_without_the_callers_slurm(
    slurm: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    seen = slurm.run("r1n1", ["sh", "-c", "pwd; env"], env={"GIVEN": "here", "HOME": None}).stdout.splitlines()
    assert seen[0] == str(tmp_path)
    assert "GIVEN=here" in seen
    assert not [line for line in seen if line.startswith(("SLURM_", "OMPI_", "HOME="))]


def test_a_failing_command_raises_with_what_it_said(slurm: SlurmLab) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        slurm.run("r1n1", ["sh", "-c", "echo of no use >&2; exit 3"])
    assert failure.value.returncode == 3
    assert "of no use" in failure.value.__notes__[0]


def test_a_command_that_runs_too_long_is_killed_with_its_children(slurm: SlurmLab, tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as failure:
        slurm.run("r1n1", ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; echo so far; wait"], timeout=3)
    assert "so far" in failure.value.__notes__[0]
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: is_gone(child))  # killed with its parent, but it ends in its own time


def test_srun_reaches_two_nodes(slurm: SlurmLab) -> None:
    out = slurm.run("ctl", ["srun", "--nodes=2", "hostname"]).stdout
    assert sorted(out.split()) == ["r1n1", "r1n2"]


def test_a_job_on_all_nodes_has_a_nodelist_with_several_brackets(slurm: SlurmLab) -> None:
    out = slurm.run("ctl", ["srun", "--nodes=4", "--ntasks-per-node=1", "sh", "-c", "echo $SLURM_JOB_NODELIST"])
    assert out.stdout == "r1n[1-2],r2n[1-2]\n" * 4


def test_granted_gpus_become_visible_devices(slurm: SlurmLab) -> None:
    out = slurm.run("ctl", ["srun", "--gpus-per-node=3", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]).stdout
    assert out == "0,1,2\n"


def test_more_gpus_than_a_node_has_are_refused(slurm: SlurmLab) -> None:
    refused = slurm.run("ctl", ["srun", "--gpus-per-node=9", "true"], check=False)
    assert "Requested node configuration is not available" in refused.stderr


def test_a_finished_job_tells_state_status_and_nodes(slurm: SlurmLab, tmp_path: Path) -> None:
    job_id = slurm.sbatch("--nodes=2", "--output=out", "--wrap=hostname; exit 3", cwd=tmp_path)
    result = slurm.wait_job(job_id)
    assert (result.state, result.exit_code, result.signal) == ("FAILED", 3, 0)
    assert result.nodelist == "r1n[1-2]"
    assert (tmp_path / "out").read_text() == "r1n1\n"


def test_accounting_knows_the_job(slurm: SlurmLab, tmp_path: Path) -> None:
    job_id = slurm.sbatch("--gpus-per-node=2", "--output=out", "--wrap=exit 4", cwd=tmp_path)
    slurm.wait_job(job_id)
    told = ["sacct", "-nPX", "-j", job_id, "-o", "State,ExitCode,AllocTRES"]
    # Accounting hears of the end later than the controller does, and of the exit status later than of the state.
    wait_until(lambda: slurm.run("ctl", told).stdout.startswith("FAILED|4:0|"))
    assert "gres/gpu=2" in slurm.run("ctl", told).stdout


def test_an_urgent_job_preempts_and_the_first_is_requeued(slurm: SlurmLab, tmp_path: Path) -> None:
    # The signal of --signal comes at preemption, and GraceTime later the end.
    job = 'trap "echo told" USR1; echo start $SLURM_RESTART_COUNT; while sleep 1; do :; done'
    options = ["--exclusive", "--nodes=4", "--output=out", "--open-mode=append"]
    job_id = slurm.sbatch(*options, "--requeue", "--signal=B:USR1@5", f"--wrap={job}", cwd=tmp_path)
    wait_until(lambda: (tmp_path / "out").exists() and "start" in (tmp_path / "out").read_text())
    urgent = slurm.sbatch("--partition=urgent", *options, "--wrap=true", cwd=tmp_path)
    assert slurm.wait_job(urgent).state == "COMPLETED"
    wait_until(lambda: "start 1" in (tmp_path / "out").read_text())
    slurm.run("ctl", ["scancel", job_id])
    assert slurm.wait_job(job_id).restarts == 1
    # Between them Slurm and the shell tell that they ended it.
    said = [line for line in (tmp_path / "out").read_text().splitlines() if line.startswith(("start", "told"))]
    assert said == ["start", "told", "start 1"]


def test_an_unplugged_host_is_out_of_reach_until_plugged(slurm: SlurmLab) -> None:
    slurm.unplug("w2")
    assert not answers(slurm, "w1", "w2")
    slurm.plug("w2")
    wait_until(lambda: answers(slurm, "w1", "w2"))


def test_a_killed_host_loses_all_processes_and_comes_back(slurm: SlurmLab) -> None:
    victim = slurm.start("r2n2", ["sleep", "60"])
    wait_until(lambda: victim.pid in slurm.processes("r2n2", "sleep"))
    slurm.kill_host("r2n2")
    assert victim.wait(timeout=30) == -9
    slurm.boot("r2n2")
    assert slurm.run("ctl", ["srun", "--nodelist=r2n2", "hostname"]).stdout == "r2n2\n"


def test_ssh_leads_from_host_to_host(slurm: SlurmLab) -> None:
    config = slurm.start_sshd()
    assert slurm.run("w1", ["ssh", "-F", config, "w2", "hostname"]).stdout == "w2\n"
    assert slurm.run("r1n1", ["ssh", "r2n1", "hostname"]).stdout == "r2n1\n"


def test_a_plain_host_knows_no_slurm(slurm: SlurmLab) -> None:
    assert "configuration source" in slurm.run("w1", ["sinfo"], check=False).stderr


def test_down_leaves_neither_process_nor_file(slurm: SlurmLab) -> None:
    # A second lab beside the first, so that this also shows that two do not meet.
    lab = SlurmLab(slurm.directory.with_name(slurm.directory.name + "b"), nodes=["a1"], plain_hosts=[], gpus=0)
    lab.up()
    left_behind = int(lab.run("a1", ["sh", "-c", "setsid sleep 60 & echo $!"]).stdout)
    assert not is_gone(left_behind)
    mark = f"slurm-lab:{lab.directory}:"
    assert [pid for pid, found in slurm_lab.marked_processes().items() if found.startswith(mark)]
    lab.down()
    assert not [pid for pid, found in slurm_lab.marked_processes().items() if found.startswith(mark)]
    assert is_gone(left_behind)
    assert not lab.directory.exists()
    assert slurm.run("ctl", ["srun", "hostname"]).stdout == "r1n1\n"


def test_what_a_killed_session_left_is_stopped_by_the_next(slurm: SlurmLab) -> None:
    directory = slurm.directory.with_name(slurm.directory.name + "c")
    script = f"""
import os, pathlib, signal
from slurm_lab import SlurmLab
SlurmLab(pathlib.Path("{directory}"), nodes=["a1"], plain_hosts=[], ends_with_me=True).up()
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent)
    assert killed.returncode == -9
    assert slurm_lab.load(directory).run("a1", ["hostname"]).stdout == "a1\n"
    slurm_lab.stop_orphans()
    assert not directory.exists()
    assert slurm.run("ctl", ["hostname"]).stdout == "ctl\n"


def test_a_folder_with_other_files_is_not_taken_for_a_lab(slurm: SlurmLab) -> None:
    folder = slurm.directory / "tmp/precious"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(slurm_lab.LabError, match="files that no lab wrote"):
        SlurmLab(folder).up()
    assert (folder / "thesis.tex").exists()


def test_a_host_that_is_not_there_is_named(slurm: SlurmLab) -> None:
    with pytest.raises(slurm_lab.LabError, match=r"no host 'n9' is up .* r1n1, r1n2"):
        slurm.run("n9", ["true"])


def answers(lab: SlurmLab, here: str, there: str) -> bool:
    """Whether `there` answers on the network at all: a refused connection is an answer, silence is none."""
    knock = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 9), timeout=1)\n"
        "except ConnectionRefusedError: print('answers')\n"
        "except OSError: pass\n"
    )
    return lab.run(here, [sys.executable, "-c", knock, there]).stdout == "answers\n"
