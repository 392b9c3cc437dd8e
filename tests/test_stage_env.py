"""The environment on each node's own disk: what is copied, when it is the same, and what is said where it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import stage_env
from cluster.allocation import Allocation, Host
from cluster.stage_env import archive_of, environment_key, file_sha256, main, staged, step_environment, unpack
from stand_ins import stand_ins

HERE = Allocation("local", (Host("localhost", 2, 0, 2),))
JOB = Allocation("slurm", (Host("n1", 2, 0, 2), Host("n2", 2, 0, 2)))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment in which one package is installed."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    (packages / "shard.py").write_text("PLACE = __file__\n")
    (packages / "shard-1.0.dist-info").mkdir()
    (packages / "shard-1.0.dist-info/RECORD").write_text("shard.py,sha256=abc,17\n")
    return folder


@pytest.fixture
def node(tmp_path: Path, environment: Path) -> Path:
    """The job's folder on a node, with the archive that sbcast has brought."""
    folder = tmp_path / f"slurm-mpi-train-{os.geteuid()}" / "job-7"
    folder.mkdir(mode=0o700, parents=True)
    folder.parent.chmod(0o700)
    subprocess.run(["tar", "-cf", str(archive_of(folder / "env-1")), "-C", f"{environment}/", "."], check=True)
    return folder


def test_the_copy_runs_with_its_own_packages(node: Path) -> None:
    sha256 = file_sha256(archive_of(node / "env-1"))
    assert main(["look", str(node), "env-1"]) == stage_env.NEEDED
    assert main(["unpack", str(node), "env-1", sha256]) == stage_env.THERE
    command = [str(node / "env-1/bin/python"), "-c", "import shard, sys; print(sys.prefix, shard.PLACE)"]
    prefix, place = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert prefix == str(node / "env-1")
    assert place.startswith(prefix)


def test_a_second_attempt_finds_the_copy_and_the_archive_is_gone(node: Path) -> None:
    main(["unpack", str(node), "env-1", file_sha256(archive_of(node / "env-1"))])
    assert main(["look", str(node), "env-1"]) == stage_env.THERE
    assert [path.name for path in node.iterdir()] == ["env-1"]


def test_an_archive_that_arrived_changed_is_not_unpacked(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unpack", str(node), "env-1", "0" * 64]) == stage_env.IMPOSSIBLE
    assert "arrived changed" in capsys.readouterr().out
    assert not (node / "env-1").exists()


def test_what_tar_cannot_unpack_leaves_no_half_of_a_copy(node: Path) -> None:
    archive = archive_of(node / "env-1")
    archive.write_bytes(b"no archive")
    assert main(["unpack", str(node), "env-1", file_sha256(archive)]) == stage_env.IMPOSSIBLE
    assert [path.name for path in node.iterdir()] == [archive.name]


def test_a_folder_that_others_can_read_is_refused(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node.parent.chmod(0o755)
    assert main(["look", str(node), "env-1"]) == stage_env.IMPOSSIBLE
    assert "is not this user's alone" in capsys.readouterr().out


def test_cleaning_removes_the_jobs_folder_alone(node: Path) -> None:
    (node.parent / "job-8").mkdir()
    assert main(["clean", str(node)]) == 0
    assert [path.name for path in node.parent.iterdir()] == ["job-8"]


def test_the_key_follows_what_is_installed(environment: Path, tmp_path: Path) -> None:
    copied = tmp_path / "same"
    subprocess.run(["cp", "-r", str(environment), str(copied)], check=True)
    assert environment_key(copied) == environment_key(environment)
    [record] = copied.glob("lib/python3*/site-packages/*/RECORD")
    record.write_text("shard.py,sha256=abd,17\n")
    assert environment_key(copied) != environment_key(environment)


@pytest.mark.parametrize(
    ("granted", "program", "path", "why"),
    [
        (HERE, ["/e/bin/python"], "/usr/bin:/bin", "it works by Slurm's sbcast, and this is no Slurm job"),
        (JOB, ["/e/bin/python"], "/nowhere", "there is no sbcast on PATH"),
        (JOB, ["/e/bin/python"], None, "/e/bin/python is in no virtual environment (no pyvenv.cfg in /e)"),
    ],
    ids=["no Slurm", "no sbcast", "no virtual environment"],
)
def test_where_it_cannot_be_one_line_says_why_and_the_program_stays(
    granted, program, path, why, tmp_path: Path, monkeypatch, capsys
) -> None:
    for tool in ("sbcast", "srun", "tar"):
        (tmp_path / tool).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", path or str(tmp_path))
    with staged("/tmp", program, granted, lambda: False) as running:
        assert running == program
    assert capsys.readouterr().out == f"note: --stage-env /tmp: {why}; the environment is used where it lies\n"


def test_a_node_that_cannot_have_it_is_quoted_and_the_rest_is_cleaned(
    environment: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    full = f'echo "$@" >> {tmp_path}/asked; echo "n2 is full"; exit 4'
    monkeypatch.setenv("PATH", stand_ins(tmp_path, srun=full, sbcast=""))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    program = [str(environment / "bin/python"), "a.py"]
    with staged(str(tmp_path), program, JOB, lambda: False) as running:
        assert running == program
    assert "n2 is full; the environment is used where it lies" in capsys.readouterr().out
    assert [" clean " in line for line in (tmp_path / "asked").read_text().splitlines()] == [False, True]


def test_a_node_on_which_the_archive_arrived_changed_is_quoted(
    environment: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    srun = 'case "$*" in *" look "*) exit 3 ;; *" unpack "*) echo "n2: arrived changed"; exit 4 ;; esac'
    monkeypatch.setenv("PATH", stand_ins(tmp_path, srun=srun, sbcast=""))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    program = [str(environment / "bin/python"), "a.py"]

    with staged(str(tmp_path), program, JOB, lambda: False) as running:
        assert running == program

    assert "n2: arrived changed; the environment is used where it lies" in capsys.readouterr().out
    assert not list(tmp_path.rglob("packed-*"))


def test_a_job_that_is_told_to_stop_does_not_wait_for_the_copy(
    environment: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, srun="exec sleep 600", sbcast=""))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(stage_env, "CLEAN_WITHIN", 0.1)
    with staged(str(tmp_path), [str(environment / "bin/python")], JOB, lambda: True):
        assert "the job was told to stop" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("srun", "tar", "said"),
    [
        (f"exit {stage_env.THERE}", "", "staged to"),
        (f"exit {stage_env.NEEDED}", "echo no space; exit 2", "tar ended with status 2: no space"),
        (f"exit {stage_env.NEEDED}", "", "No such file or directory"),
        (f"[ ${{11}} = look ] && exit {stage_env.NEEDED}; exit 9", "exec /bin/tar $@", "srun ended with status 9"),
    ],
    ids=["there already", "not packed", "the archive has gone", "not unpacked"],
)
def test_what_becomes_of_the_copy_is_one_line(
    srun: str, tar: str, said: str, environment: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", srun=srun, tar=tar, sbcast=""))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "disk").mkdir()
    with staged(str(tmp_path / "disk"), [str(environment / "bin/python")], JOB, lambda: False):
        assert said in capsys.readouterr().out


def test_on_a_launchers_host_whose_folder_cannot_be_trusted_nothing_is_packed(
    environment: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", srun=f"exit {stage_env.NEEDED}", tar="exit 9", sbcast=""))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / f"slurm-mpi-train-{os.geteuid()}").touch()
    with staged(str(tmp_path), [str(environment / "bin/python")], JOB, lambda: False):
        assert "or is not this user's alone; the environment is used where it lies" in capsys.readouterr().out


def test_a_copy_that_is_there_is_not_unpacked_again(node: Path) -> None:
    (node / "env-1").mkdir()
    unpack(archive_of(node / "env-1"), node / "env-1", "the hash of another archive")
    assert list((node / "env-1").iterdir()) == []


def test_a_step_has_nothing_of_the_shape_of_the_job() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_PER_NODE": "8", "SLURM_EXPORT_ENV": "NONE"}
    step = step_environment(job)
    assert (step["SLURM_JOB_ID"], step["SLURM_EXPORT_ENV"]) == ("7", "ALL")
    assert not {"SLURM_NTASKS_PER_NODE", "SLURM_GPUS_PER_NODE"} & set(step)
