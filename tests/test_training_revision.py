"""The commit by which a run was made, in its `config.json`."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from training.config import TrainConfig
from training.demo import demo_architecture
from training.revision import git_revision
from training.run_directory import RunDirectory, changed_options, make_run_directory, write_config


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one commit, in `tmp_path/code`."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train.py").write_text("lr = 1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


def test_a_checkout_has_its_commit_and_whether_known_files_were_changed(checkout: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout.strip()
    (checkout / "notes.txt").touch()
    assert git_revision(checkout) == {"commit": head, "dirty": False}

    (checkout / "train.py").write_text("lr = 2\n")
    assert git_revision(checkout) == {"commit": head, "dirty": True}


@pytest.mark.parametrize("what_is_missing", ["git", "checkout", "commit"])
def test_where_there_is_no_commit_nothing_is_known_and_nothing_fails(
    what_is_missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what_is_missing == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif what_is_missing == "commit":
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    else:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", os.path.dirname(tmp_path))

    assert git_revision(tmp_path) is None


def test_it_stands_in_the_runs_configuration_and_another_commit_is_no_changed_option(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    run, config = RunDirectory(tmp_path / "a"), TrainConfig()
    make_run_directory(run)
    write_config(run, config, demo_architecture(), "fingerprint", 1)
    before = json.loads(run.config.read_text())["revision"]
    monkeypatch.chdir(tmp_path)

    assert before == git_revision(checkout)
    assert changed_options(run, config, 1) is None
