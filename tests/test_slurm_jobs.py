"""Jobs on a real Slurm, through both front ends and by hand, with every MPI."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.records import read_records
from conftest import ROOT, Mpi, metrics_of
from slurm_lab import SlurmLab
from waiting import wait_until

WHERE = """
import json, os, socket, sys
names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME"]
json.dump({"host": socket.gethostname(), **{name: os.environ.get(name) for name in names}}, sys.stdout)
"""

WHERE_JOB = """\
#!/bin/bash
exec {python} -m cluster.launch {options} --mpirun {mpirun} --experiment-name where -- python where.py
"""

SAVES_ONCE = """
import os, signal, sys, time
if os.environ["CLUSTER_ATTEMPT"] == "1":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    print("ready", flush=True)
    time.sleep(600)
"""

FIRST_TWO = ["--nodes=2", "--nodelist=r1n[1-2]"]
"""For tests that say on which host what was: Slurm takes others while one of these still ends an earlier job."""
TINY = ["--preset", "smoke", "--max-steps", "4", "--max-eval-samples", "8", "--device", "cpu"]
"""A training run of seconds, for tests of the front ends."""


def batch(slurm: SlurmLab, arguments: list[str], cwd: Path, **environ: str) -> str:
    """Submit; the job's id."""
    done = slurm.run("ctl", ["sbatch", "--parsable", *arguments], cwd=cwd, env=environ)
    return str(done.stdout).strip()


def log_of(cwd: Path, job_id: str) -> str:
    [log] = cwd.glob(f"*-{job_id}.log")
    return log.read_text()


def with_mpi(mpi: Mpi) -> dict[str, str]:
    """The environment of a user whose modules put this MPI's mpirun on PATH."""
    return {"PATH": f"{mpi.mpirun.parent}:/usr/bin:/bin"}


def places(attempt: Path) -> list[tuple[str, ...]]:
    """Host, local rank, node rank and visible GPUs of each rank, as the ranks themselves said."""
    said = [json.loads(log.read_text()) for log in (attempt / "logs").iterdir()]
    names = ("host", "LOCAL_RANK", "GROUP_RANK", "CUDA_VISIBLE_DEVICES")
    return [tuple(rank[name] for name in names) for rank in sorted(said, key=lambda rank: int(rank["RANK"]))]


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in metrics_of(run_dir) if "loss" in row]


@pytest.fixture
def where(tmp_path: Path, mpi: Mpi) -> Path:
    """A project with a program that says where each of its ranks runs, and a batch script for it."""
    (tmp_path / "where.py").write_text(WHERE)
    script = WHERE_JOB.format(python=sys.executable, mpirun=mpi.mpirun, options="${LAUNCH_OPTIONS:-}")
    (tmp_path / "job.sh").write_text(script)
    return tmp_path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's checkout: the packages and templates, and nothing that an earlier test wrote."""
    for name in ("cluster", "training", "sbatch", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_an_even_allocation_runs_as_planned_on_the_named_interface(slurm: SlurmLab, mpi: Mpi, where: Path) -> None:
    job = batch(
        slurm,
        [*FIRST_TWO, "--ntasks-per-node=2", "--gpus-per-node=2", "--output=%x-%j.log", "job.sh"],
        where,
        LAUNCH_OPTIONS="--nic eth0",
    )

    end = slurm.wait_job(job)

    assert (end.state, end.exit_code) == ("COMPLETED", 0), log_of(where, job)
    assert "2 nodes × 2 GPUs = 4 ranks" in log_of(where, job)
    assert places(where / "outputs/where/attempt-0001") == [
        ("r1n1", "0", "0", "0,1"),
        ("r1n1", "1", "0", "0,1"),
        ("r1n2", "0", "1", "0,1"),
        ("r1n2", "1", "1", "0,1"),
    ]


def test_uneven_gpus_give_each_host_its_own_number_of_ranks(slurm: SlurmLab, mpi: Mpi, where: Path) -> None:
    job = batch(slurm, ["--nodes=2", "--ntasks=3", "--gpus=3", "--output=%x-%j.log", "job.sh"], where)

    end = slurm.wait_job(job)

    assert (end.state, end.exit_code) == ("COMPLETED", 0), log_of(where, job)
    assert [place[:2] for place in places(where / "outputs/where/attempt-0001")] == [
        ("r1n1", "0"),
        ("r1n1", "1"),
        ("r1n2", "0"),
    ]


def test_a_node_list_of_several_brackets_is_followed_in_order(slurm: SlurmLab, mpi: Mpi, where: Path) -> None:
    job = batch(slurm, ["--nodes=4", "--ntasks=5", "--output=%x-%j.log", "job.sh"], where)

    end = slurm.wait_job(job)

    assert (end.state, end.nodelist.count("[")) == ("COMPLETED", 2), log_of(where, job)
    assert [place[:2] for place in places(where / "outputs/where/attempt-0001")] == [
        ("r1n1", "0"),
        ("r1n1", "1"),
        ("r1n2", "0"),
        ("r2n1", "0"),
        ("r2n2", "0"),
    ]


def test_salloc_by_hand_runs_the_same_launcher(slurm: SlurmLab, mpi: Mpi, where: Path) -> None:
    done = slurm.run(
        "ctl",
        ["salloc", *FIRST_TWO, "--ntasks-per-node=1", "--gpus-per-node=1", "bash", "job.sh"],
        cwd=where,
    )

    assert "2 of 2 ranks completed" in done.stdout
    assert [place[0] for place in places(where / "outputs/where/attempt-0001")] == ["r1n1", "r1n2"]


def test_one_gpu_a_task_is_refused_by_the_rank_that_sees_too_few(slurm: SlurmLab, mpi: Mpi, where: Path) -> None:
    job = batch(slurm, ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1", "--output=%x-%j.log", "job.sh"], where)

    end = slurm.wait_job(job)

    assert (end.state, end.exit_code) == ("FAILED", 70)
    assert "sees 1 GPU, the plan gives it GPU 1 of 2: ask Slurm with --gpus-per-node" in log_of(where, job)


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_the_launcher_refuses_to_run_inside_an_srun_step(slurm: SlurmLab, mpi: Mpi, where: Path) -> None:
    done = slurm.run("ctl", ["srun", "--nodes=1", "bash", "job.sh"], cwd=where, check=False)

    assert done.returncode == 70
    assert "this is srun step" in done.stderr
    assert not (where / "outputs").exists()


def test_the_traceback_of_the_guilty_rank_ends_the_batch_log(slurm: SlurmLab, mpi: Mpi, where: Path) -> None:
    (where / "where.py").write_text(
        "import os, time\nif os.environ['RANK'] == '3':\n    raise ValueError('boom')\ntime.sleep(600)\n"
    )
    job = batch(slurm, [*FIRST_TWO, "--ntasks-per-node=2", "--output=%x-%j.log", "job.sh"], where)

    end = slurm.wait_job(job)

    assert (end.state, end.exit_code) == ("FAILED", 1)
    last = log_of(where, job).splitlines()[-5:]
    assert last[0] == "rank 3 on r1n2 raised ValueError: boom"
    assert last[1] == "Traceback (most recent call last):"
    assert last[-1] == "ValueError: boom"


def test_a_job_fails_where_mpirun_reports_success_but_a_rank_never_completed(
    slurm: SlurmLab, mpi: Mpi, where: Path
) -> None:
    (where / "where.py").write_text("import os\nif os.environ['RANK'] == '2':\n    os._exit(0)\n")
    job = batch(slurm, [*FIRST_TWO, "--ntasks-per-node=2", "--output=%x-%j.log", "job.sh"], where)

    end = slurm.wait_job(job)

    assert (end.state, end.exit_code) == ("FAILED", 1)
    assert "rank 2 on r1n2 left with exit status 0 before the program had ended" in log_of(where, job)


@pytest.mark.parametrize("mpi", ["openmpi-4.1.8", "openmpi-5.0.11"], indirect=True)
def test_a_job_fails_where_a_node_is_lost(slurm: SlurmLab, mpi: Mpi, where: Path) -> None:
    (where / "where.py").write_text(
        "import os, signal, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    os.kill(int(open('/proc/%d/stat' % os.getppid()).read().split()[3]), signal.SIGKILL)\n"
        "time.sleep(600)\n"
    )
    job = batch(slurm, [*FIRST_TWO, "--ntasks-per-node=1", "--output=%x-%j.log", "job.sh"], where)

    end = slurm.wait_job(job)

    assert (end.state, end.exit_code) == ("FAILED", 71), log_of(where, job)
    assert "rank 1 on r1n2 never ended" in log_of(where, job)


@pytest.mark.parametrize("mpi", ["openmpi-4.1.8", "openmpi-5.0.11"], indirect=True)
def test_a_warning_saves_and_requeues_the_job(slurm: SlurmLab, mpi: Mpi, where: Path) -> None:
    (where / "where.py").write_text(SAVES_ONCE)
    job = batch(
        slurm,
        ["--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append", "--output=%x-%j.log", "job.sh"],
        where,
    )
    logs = where / "outputs/where/attempt-0001/logs"
    wait_until(lambda: [log.read_text() for log in logs.glob("*.log")] == ["ready\n"] * 2)

    slurm.run("ctl", ["scancel", "--batch", "--signal=USR1", job])
    end = slurm.wait_job(job, timeout=240)

    assert (end.state, end.restarts) == ("COMPLETED", 1), log_of(where, job)
    assert "next: the job queues itself again" in log_of(where, job)
    attempts = json.loads((where / "outputs/where/run.json").read_text())["attempts"]
    assert [attempt["verdict"]["kind"] for attempt in attempts] == ["saved for requeue", "complete"]


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_warning_saves_and_requeues_a_job_of_the_front_end_too(slurm: SlurmLab, mpi: Mpi, project: Path) -> None:
    (project / "program.py").write_text(SAVES_ONCE)
    submit = [sys.executable, "-m", "cluster.submit", "--nodes", "2", "--ranks-per-node", "1", "--program"]
    said = slurm.run("ctl", [*submit, "--", "python", "program.py"], cwd=project, env=with_mpi(mpi)).stdout
    job = said.partition("job ")[2].split()[0]
    logs = project / "outputs/program/attempt-0001/logs"
    wait_until(lambda: [log.read_text() for log in logs.glob("*.log")] == ["ready\n"] * 2)

    slurm.run("ctl", ["scancel", "--batch", "--signal=USR1", job])
    end = slurm.wait_job(job, timeout=240)

    assert (end.state, end.exit_code, end.restarts) == ("COMPLETED", 0, 1)
    attempts = json.loads((project / "outputs/program/run.json").read_text())["attempts"]
    assert [attempt["verdict"]["kind"] for attempt in attempts] == ["saved for requeue", "complete"]


@pytest.mark.parametrize("mpi", ["openmpi-4.1.8", "openmpi-5.0.11"], indirect=True)
def test_the_gpt2_template_trains_the_real_configuration(
    slurm: SlurmLab, mpi: Mpi, project: Path, shared_data: Path
) -> None:
    job = batch(
        slurm,
        [*FIRST_TWO, "--ntasks-per-node=2", "--gpus-per-node=2", "sbatch/gpt2_mpi.sh", "--experiment-name", "a"]
        + ["--model-name", str(shared_data / "gpt2"), "--dataset-name", str(shared_data / "gsm8k_alpaca.json")]
        + ["--max-steps", "3", "--seq-length", "32", "--batch-size", "1", "--max-eval-samples", "8", "--device", "cpu"],
        project,
        **with_mpi(mpi),
    )

    end = slurm.wait_job(job, timeout=400)

    assert (end.state, end.exit_code) == ("COMPLETED", 0), log_of(project, job)
    assert [row["step"] for row in metrics_of(project / "outputs/a") if "loss" in row] == [1, 2, 3]
    assert (project / "outputs/a/checkpoints/step-00000003/model.safetensors").stat().st_size > 400_000_000
    started = [one for one in read_records(project / "outputs/a/attempt-0001") if one["state"] == "started"]
    assert sorted(one["host"] for one in started) == ["r1n1", "r1n1", "r1n2", "r1n2"]


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11", "mpich-5.0.2"], indirect=True)
def test_template_and_submitit_train_alike_and_resume(slurm: SlurmLab, mpi: Mpi, project: Path) -> None:
    job = batch(
        slurm,
        ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "sbatch/smoke_mpi.sh", "-e", "by-template", *TINY],
        project,
        **with_mpi(mpi),
    )
    end = slurm.wait_job(job, timeout=300)
    assert (end.state, end.exit_code) == ("COMPLETED", 0), log_of(project, job)

    def submit(*options: str, steps: str) -> Any:
        return slurm.run(
            "ctl",
            [sys.executable, "-m", "cluster.submit", "--nodes", "2", "--gpus", "2", *options]
            + ["--", "-e", "by-submitit", *TINY, "--max-steps", steps],
            cwd=project,
            env=with_mpi(mpi),
            timeout=400,
        )

    first = submit("--wait", steps="4")
    assert "plan           2 nodes × 2 GPUs = 4 ranks\n" in first.stdout
    assert losses(project / "outputs/by-submitit") == losses(project / "outputs/by-template")
    assert len(losses(project / "outputs/by-submitit")) == 4

    if mpi.name == "openmpi-5.0.11":  # the front end is the same for all: once is enough
        second = submit("--follow", steps="6")
        assert "── complete · exit status 0 · attempt 2" in second.stdout
        assert [row["step"] for row in metrics_of(project / "outputs/by-submitit") if "loss" in row] == [
            1,
            2,
            3,
            4,
            5,
            6,
        ]


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_wait_returns_the_jobs_true_status_and_the_error_ends_its_log(slurm: SlurmLab, mpi: Mpi, project: Path) -> None:
    done = slurm.run(
        "ctl",
        [sys.executable, "-m", "cluster.submit", "--nodes", "1", "--gpus", "1", "--follow", "--no-check"]
        + ["--", "-e", "bad", "--preset", "smoke", "--dataset-name", "nowhere.json", "--device", "cpu"],
        cwd=project,
        env=with_mpi(mpi),
        check=False,
        timeout=200,
    )

    assert done.returncode == 64
    assert "── user error · exit status 64" in done.stdout
    assert "nowhere.json" in done.stdout[done.stdout.index("── user error") :], done.stdout


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_what_sbatch_refuses_is_said_in_its_words_and_leaves_nothing(slurm: SlurmLab, mpi: Mpi, project: Path) -> None:
    before = sorted(os.listdir(project))

    done = slurm.run(
        "ctl",
        [sys.executable, "-m", "cluster.submit", "--nodes", "99", "--gpus", "2", "--no-check", "--", "-e", "big"],
        cwd=project,
        env=with_mpi(mpi),
        check=False,
    )

    assert done.returncode == 64
    [line] = done.stderr.splitlines()
    assert line == "error: sbatch refused: allocation failure: Requested node configuration is not available"
    assert sorted(os.listdir(project)) == before


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_dry_run_prints_the_script_that_a_submission_then_uses(slurm: SlurmLab, mpi: Mpi, project: Path) -> None:
    command = [sys.executable, "-m", "cluster.submit", "--nodes", "1", "--ranks-per-node", "1", "--program"]
    dry = slurm.run("ctl", [*command, "--dry-run", "--", "true"], cwd=project, env=with_mpi(mpi))
    real = slurm.run("ctl", [*command, "--wait", "--", "true"], cwd=project, env=with_mpi(mpi))

    [script] = (project / "outputs/true/submitit").glob("*_submission.sh")
    assert dry.stdout.startswith(script.read_text())
    assert "job            " in real.stdout


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_template_outside_the_project_says_where_to_submit_from(slurm: SlurmLab, mpi: Mpi, tmp_path: Path) -> None:
    template = str(ROOT / "sbatch/smoke_mpi.sh")
    job = batch(slurm, ["--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", template], tmp_path)

    assert slurm.wait_job(job).exit_code == 64
    assert log_of(tmp_path, job) == (
        f"error: no sbatch/env.sh in {tmp_path}: submit from the project's root "
        "(python -m cluster templates DIR makes one)\n"
    )


STAGES = """\
#!/bin/bash
exec {python} -m cluster.launch --stage-env /dev/shm --mpirun {mpirun} --restarts 1 \\
    --experiment-name where -- {venv}/bin/python where.py
"""
WHICH_PYTHON = """
import json, os, socket, sys
json.dump([socket.gethostname(), sys.executable], sys.stdout)
sys.exit(os.environ["CLUSTER_ATTEMPT"] == "1")
"""


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_staged_environment_lies_on_each_node_for_both_attempts_and_is_gone_at_the_end(
    slurm: SlurmLab, mpi: Mpi, tmp_path: Path
) -> None:
    """/dev/shm of each host of these tests is its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (tmp_path / "where.py").write_text(WHICH_PYTHON)
    (tmp_path / "job.sh").write_text(STAGES.format(python=sys.executable, mpirun=mpi.mpirun, venv=tmp_path / "venv"))

    job = batch(slurm, ["--wait", *FIRST_TWO, "--output=job-%j.log", "job.sh"], tmp_path, PYTHONPATH=str(ROOT))

    log = log_of(tmp_path, job)
    assert "2 of 2 ranks completed" in log
    assert log.count(" staged to /dev/shm/") == 1
    for attempt in ("attempt-0001", "attempt-0002"):
        said = [json.loads(path.read_text()) for path in (tmp_path / "outputs/where" / attempt / "logs").iterdir()]
        assert sorted(host for host, _ in said) == ["r1n1", "r1n2"]
        assert all(python.startswith(f"/dev/shm/slurm-mpi-train-0/job-{job}/env-") for _, python in said)
    left = [slurm.run(host, ["find", "/dev/shm/slurm-mpi-train-0"], check=False).stdout for host in ("r1n1", "r1n2")]
    assert left == ["/dev/shm/slurm-mpi-train-0\n"] * 2
