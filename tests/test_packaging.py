"""What is published: the wheel's contents, the version, and what the page on stability promises."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cluster
from cluster import __main__, templates
from cluster.errors import RequestError
from conftest import ROOT
from release_check import (
    PACKAGES,
    Wrong,
    check_same,
    declared_version,
    files_of_wheel,
    public_commands,
    wanted_in_wheel,
)

TEMPLATES = ["env.sh", "gpt2_mpi.sh", "smoke_mpi.sh"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build of the wheel reads of the project, without what tests and programs leave there."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in (*PACKAGES, "sbatch"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", folder, tree], check=True)
    [wheel] = folder.iterdir()
    return wheel


def test_the_wheel_holds_the_packages_the_templates_and_nothing_else(wheel: Path, tree: Path) -> None:
    found = files_of_wheel(wheel)

    assert found == wanted_in_wheel(tree)
    assert found >= {"cluster/py.typed", "training/py.typed", "training/report/page.html"}
    assert found >= {f"cluster/sbatch/{name}" for name in TEMPLATES}


def test_the_wheel_alone_has_the_templates_and_its_version(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")

    def cluster_says(*arguments: str) -> str:
        command, environ = (
            [sys.executable, "-P", "-m", "cluster", *arguments],
            {"PYTHONPATH": str(tmp_path / "installed")},
        )
        return subprocess.run(command, cwd=tmp_path, env=environ, text=True, stdout=subprocess.PIPE, check=True).stdout

    assert cluster_says("--version") == f"slurm-mpi-train {declared_version(ROOT)}\n"
    cluster_says("templates", "mine")
    for name in TEMPLATES:
        assert (tmp_path / "mine/sbatch" / name).read_bytes() == (ROOT / "sbatch" / name).read_bytes()


def test_templates_are_copied_from_a_checkout_and_left_where_they_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sbatch").mkdir()
    shutil.copy(ROOT / "sbatch/env.sh", tmp_path / "sbatch")

    assert templates.main([str(tmp_path)]) == 0

    assert sorted(path.name for path in (tmp_path / "sbatch").iterdir()) == TEMPLATES
    assert os.access(tmp_path / "sbatch/smoke_mpi.sh", os.X_OK)
    assert capsys.readouterr().out == (
        f"unchanged  {tmp_path}/sbatch/env.sh\n"
        f"written    {tmp_path}/sbatch/gpt2_mpi.sh\n"
        f"written    {tmp_path}/sbatch/smoke_mpi.sh\n"
        f"next: in {tmp_path}/sbatch/env.sh load your site's modules and export PYTHON={sys.executable},\n"
        f"      then, from {tmp_path}: sbatch sbatch/smoke_mpi.sh\n"
    )


def test_a_template_that_was_edited_is_not_overwritten_and_nothing_is_copied(tmp_path: Path) -> None:
    (tmp_path / "sbatch").mkdir()
    (tmp_path / "sbatch/smoke_mpi.sh").write_text("mine\n")

    with pytest.raises(
        RequestError, match=r"sbatch/smoke_mpi\.sh is not as this version has it, and nothing was copied"
    ):
        templates.main([str(tmp_path)])

    assert os.listdir(tmp_path / "sbatch") == ["smoke_mpi.sh"]
    assert (tmp_path / "sbatch/smoke_mpi.sh").read_text() == "mine\n"


def test_a_folder_for_templates_that_cannot_be_made_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(RequestError, match=r"file/sbatch cannot be written \(Not a directory\): choose another DIR"):
        templates.main([str(tmp_path / "file")])


def test_the_version_is_that_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert __main__.version_text() == f"slurm-mpi-train {importlib.metadata.version('slurm-mpi-train')}"

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert __main__.version_text() == f"slurm-mpi-train, not installed, from {ROOT}/cluster/__main__.py"


def not_installed(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def test_the_changelogs_newest_release_is_this_version_with_its_date(tmp_path: Path) -> None:
    version = declared_version(ROOT)

    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for heading in (f"## [{version}] – unreleased", "## [99.0.0] – 2026-11-28", "# Changelog"):
        (tmp_path / "CHANGELOG.md").write_text(f"{heading}\n\n## [0.0.1] – 2026-01-01\n")
        with pytest.raises(Wrong, match=f"pyproject.toml has version {version}, and the newest in CHANGELOG.md is "):
            declared_version(tmp_path)


def test_a_file_too_few_or_too_many_is_named() -> None:
    with pytest.raises(Wrong, match=r"^w lacks \['a\.sh'\], and holds besides \['tests/b\.py'\]$"):
        check_same("w", {"c.py", "tests/b.py"}, {"a.sh", "c.py"})


def test_what_the_page_on_stability_promises_is_there() -> None:
    page = (ROOT / "docs/stability.md").read_text()
    modules = [ROOT / module.replace(".", "/") for module in public_commands(page)]

    assert {str(path) for path in modules} >= {
        f"{ROOT}/cluster",
        f"{ROOT}/cluster/submit",
        f"{ROOT}/training/train_llm",
    }
    assert all(path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() for path in modules)
    [names] = re.findall(r"`from cluster import (.+?)`", page)
    assert sorted(names.split(", ")) == sorted(cluster.__all__)
