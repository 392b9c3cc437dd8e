"""The run directory: its name, its permissions, and which runs may share it."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import TrainConfig
from training.errors import InputError
from training.run_directory import (
    RunDirectory,
    changed_options,
    check_experiment_name,
    check_same_run,
    check_writable,
    make_run_directory,
    run_directory,
    write_config,
)

GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "vocab_size": 50257, "attn_pdrop": 0.1}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "..",
        "a..b",
        ".hidden",
        "-x",
        "+x",
        "=",
        "@a",
        "a b",
        "a\n",
        "a\x1b[31m",
        "a\0",
        "é",
        "x" * 129,
        "a\\b",
    ],
)
def test_a_name_that_is_no_plain_file_name_is_refused(name: str):
    with pytest.raises(InputError, match=r"--experiment-name .*letters, digits and"):
        check_experiment_name(name)


@given(st.text(alphabet="abcXYZ019_+=@-", max_size=127))
def test_any_name_of_plain_characters_is_accepted(rest: str):
    check_experiment_name("a" + rest)


def test_the_experiments_name_says_where_the_run_lies():
    config = TrainConfig(experiment_name="a", output_dir=Path("out"))
    assert run_directory(config, {"CLUSTER_RUN_DIR": "/elsewhere"}).root == Path("out/a")


def test_without_a_name_the_launcher_says_where_the_run_lies_or_it_is_the_default():
    assert run_directory(TrainConfig(), {"CLUSTER_RUN_DIR": "/elsewhere"}).root == Path("/elsewhere")
    assert run_directory(TrainConfig(), {}).root == Path("outputs/default")


def test_the_directory_is_for_its_owner_alone(tmp_path: Path):
    run = RunDirectory(tmp_path / "deep" / "a")
    make_run_directory(run)
    assert stat.S_IMODE(run.root.stat().st_mode) == 0o700


def test_a_file_in_the_way_is_named_and_nothing_is_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be made: .*file is not a directory; choose another --output-dir"):
        check_writable(RunDirectory(tmp_path / "file" / "a"))


def test_a_directory_without_permission_is_named(tmp_path: Path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    program = (
        "import os, sys; from pathlib import Path; from training.run_directory import *;"
        "os.getuid() or os.setuid(65534); check_writable(RunDirectory(Path(sys.argv[1])))"
    )
    # As another user, because root may write anywhere; that user must be able to look into the test's folder.
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", program, str(locked / "a")], capture_output=True, text=True)
    assert "no permission in" in done.stderr, done.stderr
    assert not (locked / "a").exists()


def started(tmp_path: Path) -> tuple[RunDirectory, TrainConfig]:
    """A run with a checkpoint."""
    run, config = RunDirectory(tmp_path / "a"), TrainConfig(model_name="gpt2", dataset_name="d", seq_length=64)
    make_run_directory(run)
    write_config(run, config, GPT2, "f" * 64, world_size=2)
    (run.checkpoints / "step-00000008").mkdir()
    return run, config


def test_the_same_run_may_go_on_with_other_hyperparameters(tmp_path: Path):
    run, config = started(tmp_path)
    check_same_run(run, replace(config, lr=1.0, batch_size=2, max_steps=99), GPT2 | {"attn_pdrop": 0.0})


@pytest.mark.parametrize(
    ("change", "architecture", "message"),
    [
        ({"model_name": "gpt2-large"}, GPT2, r"was started with --model-name gpt2, now gpt2-large is asked"),
        ({"dataset_name": "e"}, GPT2, r"--dataset-name d, now e"),
        ({"seq_length": 32}, GPT2, r"--seq-length 64, now 32"),
        ({"validation_split_percentage": 10.0}, GPT2, r"--validation-split-percentage 5.0, now 10.0"),
        ({"seed": 1}, GPT2, r"--seed 0, now 1"),
        ({}, GPT2 | {"n_layer": 24}, r"the model's n_layer 12, now 24"),
    ],
)
def test_another_model_or_other_data_cannot_resume_a_run(tmp_path: Path, change, architecture, message):
    run, config = started(tmp_path)
    with pytest.raises(InputError, match=message + r".*another --experiment-name"):
        check_same_run(run, replace(config, **change), architecture)


def test_data_of_another_content_cannot_resume_a_run(tmp_path: Path):
    run, config = started(tmp_path)
    check_same_run(run, config, GPT2, "f" * 64)
    with pytest.raises(InputError, match=r"a dataset of fingerprint f{12}, now e{12} is asked: .*--experiment-name"):
        check_same_run(run, config, GPT2, "e" * 64)


def test_what_a_resume_changes_is_listed_with_both_values(tmp_path: Path):
    run, config = started(tmp_path)
    assert changed_options(run, config, world_size=2) is None
    assert changed_options(run, replace(config, experiment_name="a", output_dir=tmp_path), world_size=2) is None
    changed = changed_options(run, replace(config, lr=1.0, batch_size=2), world_size=4)
    assert changed == "--lr 5e-05 → 1.0, --batch-size 8 → 2, ranks 2 → 4"


def test_a_run_that_never_saved_anything_may_become_another(tmp_path: Path):
    run, config = started(tmp_path)
    (run.checkpoints / "step-00000008").rmdir()
    check_same_run(run, replace(config, model_name="other"), {"model_type": "llama"})


def test_the_configuration_is_on_disk_as_plain_json(tmp_path: Path):
    run, _ = started(tmp_path)
    written = json.loads(run.config.read_text())
    assert written["config"]["output_dir"] == "outputs"
    assert written["world_size"] == 2
    assert [path.name for path in run.root.iterdir() if path.name.startswith(".")] == []
