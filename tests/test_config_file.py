"""`--config FILE.toml` and `--training.…` of the front end: which arguments they stand for, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import launch
from cluster.config_file import Arguments, resolve_arguments
from cluster.errors import RequestError
from cluster.request import parser
from conftest import ROOT

RUN = """
[cluster]
nodes = 2
gpus_per_node = 8
wait = false
sbatch = ["exclusive", "reservation=x"]
x = "HF_HOME=/data/hf"

[training]
experiment-name = "a"
lr = 3e-4
max_steps = 7
report_to = ["tensorboard", "wandb"]
compile = true
streaming = false
"""
CLUSTER = ["--nodes=2", "--gpus=8", "--sbatch=exclusive", "--sbatch=reservation=x", "-xHF_HOME=/data/hf"]
TRAINING = ["--experiment-name=a", "--lr=0.0003", "--max-steps=7", "--report-to", "tensorboard", "wandb"]
TRAINING += ["--compile", "--no-streaming"]


@pytest.fixture
def run_toml(tmp_path: Path) -> str:
    file = tmp_path / "run.toml"
    file.write_text(RUN)
    return str(file)


def of_submit(*arguments: str) -> list[str]:
    return resolve_arguments(arguments, parser()).resolved


def test_the_files_options_stand_before_those_of_the_command_line_which_win(run_toml: str) -> None:
    assert of_submit("--nodes", "4", "--config", run_toml, "--", "--lr", "1e-4") == [
        *[*CLUSTER, "--nodes", "4"],
        *["--", *TRAINING, "--lr", "1e-4"],
    ]


def test_without_a_file_nothing_changes() -> None:
    given = ["--nodes", "2", "-x", "A=b", "--", "--config", "own.toml", "--training.lr", "1"]

    assert resolve_arguments(given, parser()) == Arguments(given, None)
    assert of_submit("--dry-run") == ["--dry-run"]


def test_options_of_the_trainer_may_stand_before_the_dashes_and_those_after_them_win(run_toml: str) -> None:
    dotted = ["--training.lr", "-1", "--training.report-to", "wandb", "mlflow", "--training.no-compile"]

    assert of_submit("--training.seed=3", "--nodes", "2", *dotted, "--", "--lr", "1") == [
        *["--nodes", "2", "--"],
        *["--seed=3", "--lr", "-1", "--report-to", "wandb", "mlflow", "--no-compile", "--lr", "1"],
    ]


@pytest.mark.parametrize("given", [["--training.num-epochs", "2"], ["--", "--num_train_epochs=2"]], ids=" ".join)
def test_epochs_that_are_given_later_take_back_the_files_steps(run_toml: str, given: list[str]) -> None:
    assert "--max-steps=7" not in of_submit("--config", run_toml, *given)
    assert "--max-steps=7" in of_submit("--config", run_toml)


def test_a_file_may_name_another_program_but_then_has_no_options_of_the_trainer(tmp_path: Path, run_toml: str) -> None:
    (tmp_path / "own.toml").write_text("[cluster]\nprogram = true\n")
    own = f"--config={tmp_path}/own.toml"

    assert of_submit(own, "--", "hostname") == ["--program", "--", "hostname"]
    with pytest.raises(
        RequestError, match=r"^--training\.lr=1 is for training\.train_llm, and another program is to run"
    ):
        of_submit(own, "--training.lr=1", "--", "hostname")
    with pytest.raises(RequestError, match=r"^\[training\] of .*run\.toml is for training\.train_llm"):
        of_submit("--config", run_toml, "--program", "--", "hostname")


def test_the_launcher_puts_them_into_the_trainers_command(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[cluster]\nnic = "ib0"\n[training]\nlr = 1\n')
    trainer = ["python", "-m", "training.train_llm"]

    for program, after in (([], []), (["--", *trainer, "--lr", "2"], ["--lr", "2"])):
        resolved = resolve_arguments(["--config", f"{tmp_path}/run.toml", *program], launch.parser()).resolved
        assert resolved == ["--nic=ib0", "--", *trainer, "--lr=1", *after]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cluster]\nnodse = 2", r"\[cluster\] nodse: no such option: did you mean nodes\?"),
        ("[cluster]\nzzz = 2", r"\[cluster\] zzz: no such option: see python -m cluster.submit --help"),
        ('[cluster]\nconfig = "b.toml"', r"\[cluster\] config: no such option"),
        ('[cluster]\nnodes = "two"', r"\[cluster\] nodes: given 'two', wanted a whole number, 1 or more"),
        ("[cluster]\nnodes = true", r"\[cluster\] nodes = true: one value is wanted"),
        ("[cluster]\ntime = [1]", r"\[cluster\] time = \[1\]: one value is wanted"),
        ("[cluster]\nsbatch = [true]", r"\[cluster\] sbatch = \[true\]: a text, or a list of texts, is wanted"),
        ('[cluster]\nx = ["1=2"]', r"\[cluster\] x: -x '1': wanted NAME or NAME=VALUE"),
        ("[cluster]\nwait = 1", r"\[cluster\] wait = 1: true or false is wanted"),
        ('[cluster]\ncluster = "slrm"', r"\[cluster\] cluster: invalid choice: 'slrm'"),
        ("[training]\nlr = {a = 1}", r'\[training\] lr = {"a": 1}: one value, or a list of texts, is wanted'),
        ("[trainig]\nlr = 1", r"`trainig` is no table of it: did you mean training\?"),
        ("lr = 1", r"`lr` is no table of it: options stand below \[cluster\], those of training\.train_llm below"),
        ("cluster = 1", r"`cluster` = 1: a table \[cluster\] is wanted"),
        ("lr = ", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_file_table_and_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)

    with pytest.raises(RequestError, match=f"^--config {file}: {words}"):
        of_submit("--config", str(file))


def test_a_file_that_is_not_there_or_not_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^--config none\.toml: No such file"):
        of_submit("--config", "none.toml")
    with pytest.raises(RequestError, match=r"^--config: a TOML file is wanted after it"):
        of_submit("--config")


def test_one_file_describes_a_run_and_the_request_that_is_kept_needs_it_no_more(tmp_path: Path) -> None:
    def cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster", *arguments]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ)

    text = (
        '[cluster]\ncluster = "local"\nranks-per-node = 1\n[training]\npreset = "smoke"\nmax-steps = 2\ndevice = "cpu"'
    )
    (tmp_path / "run.toml").write_text(text)
    done = cluster("submit", "--config", "run.toml", "--training.lr", "1e-3", "--", "--experiment-name", "a")
    (tmp_path / "run.toml").write_text(text.replace("max-steps", "maxsteps"))
    shown = cluster("resubmit", "a", "--dry-run")
    refused = cluster("submit", "--config", "run.toml")

    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "outputs/a/config.json").read_text())["config"]
    assert (config["max_steps"], config["lr"], config["config"]) == (2, 1e-3, None)
    assert shown.stdout.endswith(
        "python -m cluster.submit --cluster=local --ranks-per-node=1 -- --preset=smoke --max-steps=2 --device=cpu "
        "--lr 1e-3 --experiment-name a\n"
    )
    assert refused.returncode == 64
    assert refused.stderr == "error: --config run.toml: unknown key `maxsteps`: did you mean max_steps?\n"
