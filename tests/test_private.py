"""What a run writes is its owner's alone, and what others may have written is not believed."""

import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import element, submitted
from cluster.attach import main as attach
from cluster.cancel import main as cancel
from cluster.errors import COMPLETE, RequestError
from cluster.launch import main as launch
from cluster.options import run
from cluster.private import check_private, make_private_directory, open_private, write_private
from cluster.resubmit import main as resubmit
from cluster.submit import main as submit
from cluster.sweep import main as sweep
from conftest import ROOT
from slurm_lab import SlurmLab

LAUNCH = ["-m", "cluster.launch", "--cluster=local", "--nodes=2", "--ranks-per-node=1", "--experiment-name=a"]
FAILS = """
import os
open("of-the-program", "w").close()
raise SystemExit("with an error file" if os.environ["RANK"] == "0" else 0)
"""
UMASKS = pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids="{:03o}".format)


def open_to_others(folder: Path) -> list[str]:
    """What others could read, write or look into, below a folder and itself."""
    paths = [folder, *(path for path in folder.rglob("*") if not path.is_symlink())]
    return [f"{stat.filemode(path.stat().st_mode)} {path}" for path in paths if path.stat().st_mode & 0o077]


@UMASKS
def test_a_launch_leaves_nothing_open_and_the_program_its_own_umask(umask: int, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(FAILS.replace("raise SystemExit(", "raise ValueError("))
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, *LAUNCH, "--", "python", "prog.py"],
        cwd=tmp_path, env=environ, umask=umask, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 1, done.stdout + done.stderr
    assert (tmp_path / "outputs/a/attempt-0001/errors/rank-0.json").exists()
    assert open_to_others(tmp_path / "outputs/a") == []
    assert stat.S_IMODE((tmp_path / "of-the-program").stat().st_mode) == 0o666 & ~umask


def test_a_training_leaves_nothing_open(tmp_path: Path) -> None:
    options = ["--preset=demo", "--max-steps=2", "--ckpt-freq=1", "-e=a", "--report-to=tensorboard", "--device=cpu"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-m", "training.train_llm", *options],
        cwd=tmp_path, env=environ, umask=0o000, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == COMPLETE, done.stdout + done.stderr
    assert list(tmp_path.glob("outputs/a/checkpoints/step-*/rng.pt"))
    assert open_to_others(tmp_path / "outputs/a") == []


def test_a_submitted_job_leaves_nothing_open_under_any_umask(slurm: SlurmLab, tmp_path: Path) -> None:
    (tmp_path / "cluster").symlink_to(ROOT / "cluster")
    request = ["submit", "--nodes=1", "--gpus=0", "--experiment-name=a", "--json", "--program", "--", "true"]
    command = ["sh", "-c", 'umask 000; exec "$@"', "sh", sys.executable, "-m", "cluster", *request]

    said = slurm.run("ctl", command, cwd=tmp_path).stdout
    end = slurm.wait_job(json.loads(said)["job_id"])

    assert end.state == "COMPLETED", Path(json.loads(said)["log"]).read_text()
    assert list(tmp_path.glob("outputs/a/submitit/*_result.pkl"))
    assert open_to_others(tmp_path / "outputs/a") == []


def linked(folder: Path) -> None:
    folder.rename(folder.with_name("real"))
    folder.symlink_to("real")


def foreign(folder: Path) -> None:
    os.chown(folder, 65534, -1)


SPOILT = pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (linked, "is a symbolic link"),
        (foreign, "belongs to another user"),
        (lambda folder: folder.chmod(0o770), "can be written by others"),
        (lambda folder: folder.chmod(0o707), "can be written by others"),
    ],
    ids=["linked", "foreign", "group", "world"],
)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory that some of its owner's commands would carry out."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs/a"
    make_private_directory(folder)
    request = {"arguments": ["--program", "--", "touch", "carried-out"], "directory": str(tmp_path), "submitted": 1.0}
    one = {"name": "x", "values": {"lr": "1"}, "submit": request["arguments"], "launch": ["--", "touch", "carried-out"]}
    swept = {"arguments": ["--grid", "lr=1", "--program", "--", "true"], "directory": str(tmp_path), "elements": [one]}
    write_private(folder / "request.json", json.dumps(request))
    write_private(folder / "sweep.json", json.dumps(swept))
    return folder


@SPOILT
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_run_directory_that_others_may_have_filled_is_refused_by_all_that_believe_it(
    spoil: Callable[[Path], None], words: str, run_dir: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spoil(run_dir)
    before = sorted(run_dir.rglob("*"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    program = ["--", "true"]
    here = ["--cluster=local", "--experiment-name=a"]
    commands: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (launch, [*here, *program]),
        (submit, [*here, "--program", *program]),
        (submit, ["--nodes=1", "--dry-run", "--experiment-name=a", "--program", *program]),
        (resubmit, ["a"]),
        (resubmit, ["a", "--dry-run"]),
        (sweep, ["a", "--resume"]),
        (attach, ["a", "--stacks"]),
        (cancel, ["a"]),
        (element.main, [str(run_dir / "sweep.json")]),
    ]
    for command, arguments in commands:
        assert run(command, list(arguments)) == RequestError.status
        assert f"{run_dir} {words}" in capsys.readouterr().err
    assert sorted(run_dir.rglob("*")) == before
    assert not list(run_dir.parents[1].glob("carried-out"))


class Touch:
    """Makes a file when its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


@SPOILT
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_job_loads_no_pickle_from_a_place_that_others_can_write(
    spoil: Callable[[Path], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "submitit"
    make_private_directory(folder)
    (folder / "7_submitted.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "executed")))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    spoil(folder)

    assert run(submitted.main, [str(folder)]) == RequestError.status
    assert str(folder) in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_a_directory_put_in_the_place_of_one_that_was_looked_at_is_not_the_one_meant(tmp_path: Path) -> None:
    make_private_directory(tmp_path / "a")
    write_private(tmp_path / "a/mine", "")
    descriptor = open_private(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()

    assert os.listdir(f"/proc/self/fd/{descriptor}") == ["mine"]
    os.close(descriptor)


def test_an_own_directory_that_others_could_only_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)

    make_private_directory(tmp_path / "a")

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    check_private(tmp_path / "a")
    check_private(tmp_path / "not there")


def test_a_file_in_the_place_of_a_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()

    with pytest.raises(RequestError, match="a is no directory: what lies in it is not believed"):
        check_private(tmp_path / "a")


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "hostfile").symlink_to("precious")

    with pytest.raises(OSError, match="symbolic links"):
        write_private(tmp_path / "hostfile", "other")

    assert (tmp_path / "precious").read_text() == "kept"
