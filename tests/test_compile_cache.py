"""Compiled code lies on the node's own disk, is the user's alone, and is found again."""

import os
import stat
import sys
from pathlib import Path

import pytest

from cluster import compile_cache
from cluster.compile_cache import cache_key, compile_cache_variables, gpu_models, torch_version
from cluster.node_local import make_private
from one_rank import run_rank

PROGRAM = [sys.executable, "-c", "pass"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A node's own disk, as all its users share it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def variables(disk: Path, run_dir: Path, **environ: str) -> dict[str, str]:
    return compile_cache_variables(PROGRAM, run_dir, {"TMPDIR": str(disk), **environ})


def test_both_folders_are_there_and_closed_to_others(disk: Path, tmp_path: Path) -> None:
    places = variables(disk, tmp_path)
    assert set(places) == {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
    for place in map(Path, places.values()):
        assert place.is_relative_to(disk)
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in (place, place.parent, place.parents[1])] == [
            0o700
        ] * 3


def test_the_next_attempt_finds_the_same_folders(disk: Path, tmp_path: Path) -> None:
    assert variables(disk, tmp_path / "run") == variables(disk, tmp_path / "another run")


def test_what_the_user_has_set_stays(disk: Path, tmp_path: Path) -> None:
    assert set(variables(disk, tmp_path, TRITON_CACHE_DIR="/mine")) == {"TORCHINDUCTOR_CACHE_DIR"}
    assert variables(disk, tmp_path, TRITON_CACHE_DIR="/mine", TORCHINDUCTOR_CACHE_DIR="/mine") == {}


def made_open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)


@pytest.mark.parametrize(
    "make",
    [made_open, lambda folder: folder.symlink_to("/"), Path.touch, lambda folder: folder.parent.chmod(0o777)],
    ids=["open to others", "a link", "a file", "below a folder in which anybody can rename"],
)
def test_a_folder_that_another_user_could_have_made_is_not_used(make, disk: Path, tmp_path: Path) -> None:
    make(disk / f"slurm-mpi-train-{os.geteuid()}")
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    places = variables(disk, run_dir)
    assert places
    assert all(Path(place).is_relative_to(run_dir / "compiled" / os.uname().nodename) for place in places.values())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a folder of another user")
def test_another_users_folder_is_not_used(disk: Path, tmp_path: Path) -> None:
    squatted = disk / f"slurm-mpi-train-{os.geteuid()}"
    squatted.mkdir(mode=0o700)
    os.chown(squatted, 12345, 12345)
    assert all(Path(place).is_relative_to(tmp_path / "compiled") for place in variables(disk, tmp_path).values())
    os.chown(disk, 12345, 12345)
    assert not make_private(disk / "folder")


def test_a_folder_of_compiled_code_that_others_may_read_is_not_used(disk: Path, tmp_path: Path) -> None:
    Path(variables(disk, tmp_path)["TRITON_CACHE_DIR"]).parent.chmod(0o755)
    assert variables(disk, tmp_path) == {}


def test_a_folder_below_one_of_another_user_or_that_cannot_be_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not make_private(tmp_path / "not there" / "folder")
    monkeypatch.setattr("cluster.node_local.os.geteuid", lambda: 12345)
    tmp_path.chmod(0o777)
    assert not make_private(tmp_path / "folder")


def test_a_disk_from_which_no_code_may_be_loaded_is_not_used(disk: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(compile_cache, "is_noexec", lambda folder: True)
    assert all(Path(place).is_relative_to(tmp_path / "compiled") for place in variables(disk, tmp_path).values())


def test_where_nothing_can_be_trusted_nothing_is_set(disk: Path, tmp_path: Path) -> None:
    made_open(disk / f"slurm-mpi-train-{os.geteuid()}")
    (tmp_path / "compiled").touch()
    assert variables(disk, tmp_path) == {}


def test_versions_of_torch_and_kinds_of_gpu_do_not_mix() -> None:
    names = [cache_key("2.13.0", ["H100"]), cache_key("2.12.0", ["H100"]), cache_key("2.13.0", ["H200"])]
    assert len({*names, cache_key("2.13.0", []), cache_key(None, [])}) == 5
    assert cache_key("2.13.0+cu130", ["NVIDIA H100 80GB HBM3"] * 8).endswith("-NVIDIA-H100-80GB-HBM3")
    assert "/" not in cache_key("2/13", ["../A"])


def test_torch_is_that_of_the_programs_own_python(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.12/site-packages/torch-2.11.0+cu128.dist-info").mkdir(parents=True)
    assert torch_version([str(tmp_path / "bin/python"), "-m", "a"]) == "2.11.0+cu128"
    assert torch_version(["/usr/bin/env"]) is None


def test_gpus_are_named_as_the_driver_does(tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        text = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 16\n"
        (tmp_path / f"0000:0{number}:00.0/information").write_text(text)
    (tmp_path / "0000:02:00.0/information").mkdir(parents=True)  # one of which the driver tells nothing
    assert gpu_models(tmp_path) == ["NVIDIA H200", "NVIDIA H200"]
    assert gpu_models(tmp_path / "no driver") == []


def test_a_rank_finds_the_variables(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Inductor sets them itself in a process that has compiled something, as another test may have.
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    script = tmp_path / "program.py"
    script.write_text("import os\nprint(os.environ['TORCHINDUCTOR_CACHE_DIR'], os.environ['TRITON_CACHE_DIR'])\n")
    assert run_rank(tmp_path, [sys.executable, str(script)], TMPDIR=str(disk)).returncode == 0
    inductor, triton = (tmp_path / "attempt-0001/logs/rank-0.log").read_text().split()
    assert Path(inductor).is_relative_to(disk)
    assert Path(triton).is_relative_to(disk)
