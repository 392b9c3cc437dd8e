"""The command line, the TOML file and the presets, and which of them wins."""

import contextlib
import math
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT
from training.config import MINIMUM, TrainConfig, config_from_argv
from training.errors import InputError


def parse(*argv: str) -> TrainConfig:
    return config_from_argv(argv, "train_llm")


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('preset = "demo"\nseq-length = 32\nbatch_size = 4\nlr = 1e-3\n')
    config = parse("--config", str(file), "--batch-size", "2")
    assert (config.batch_size, config.seq_length, config.lr, config.dataset_name) == (2, 32, 1e-3, "demo")
    assert parse("--preset", "demo").seq_length == 128


@pytest.mark.parametrize("option", ["--num-epochs", "--num_epochs", "--num-train-epochs"])
def test_epochs_on_the_command_line_take_back_the_presets_steps(option: str):
    config = parse("--preset", "smoke", option, "3")
    assert (config.num_epochs, config.max_steps) == (3.0, None)
    assert parse("--preset", "smoke", f"{option}=0.01").max_steps is None


def test_epochs_in_the_file_take_back_the_presets_steps(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('preset = "smoke"\nnum_epochs = 0.5\n')
    assert parse("--config", str(file)).max_steps is None


def test_epochs_on_the_command_line_take_back_the_files_steps(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text("max_steps = 7\n")
    assert parse("--config", str(file), "--num-epochs", "2").max_steps is None


def test_steps_win_over_epochs_of_the_same_or_an_earlier_source(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text("num_epochs = 0.5\nmax_steps = 7\n")
    assert parse("--preset", "smoke", "--num-epochs", "2", "--max-steps", "5").max_steps == 5
    assert parse("--preset", "smoke", "--config", str(file)).max_steps == 7
    assert parse("--config", str(file), "--max-steps", "9").max_steps == 9


def test_the_interval_of_checkpoints_may_be_a_number_or_a_text_in_the_file(tmp_path: Path):
    file = tmp_path / "run.toml"
    for written, read in (("250", "250"), ('"10m"', "10m"), ('"auto"', "auto")):
        file.write_text(f"ckpt_freq = {written}\n")
        assert parse("--config", str(file)).ckpt_freq == read


def test_the_last_of_a_repeated_option_wins_whatever_its_spelling():
    config = parse(
        "--batch-size", "8", "--experiment-name=a", "-b", "4", "--per-device-train-batch-size", "2", "-e", "b"
    )
    assert (config.batch_size, config.experiment_name) == (2, "b")


def test_the_names_of_the_guide_and_of_hugging_face_mean_the_same():
    guide = parse(
        "-e", "x", "-d", "data", "-m", "gpt2", "-s", "64", "-b", "3", "--save-dir", "out", "--num-epochs", "1"
    )
    hf = parse(
        *("--experiment-name", "x", "--dataset-name", "data", "--model-name", "gpt2", "--seq_length", "64"),
        *("--per-device-train-batch-size", "3", "--output-dir", "out", "--num-train-epochs", "1"),
    )
    assert guide == hf


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batchsize", "3"], r"unknown option --batchsize: did you mean --batch-size\?"),
        (["--sequence-length=3"], r"unknown option --sequence-length: did you mean --seq-length\?"),
        (["stray"], r"'stray' is no option"),
        (["--ckpt-freq", "often"], r"--ckpt-freq often: a number of steps \(500\), of minutes .* or auto is wanted"),
        (["--ckpt-freq=-1"], r"--ckpt-freq -1: a number of steps"),
        (["--keep-checkpoints", "0"], r"--keep-checkpoints 0: at least 1 is wanted"),
        (["--mtbf-hours", "0"], r"--mtbf-hours 0.0: a number above 0 is wanted"),
        (["--lr", "fast"], r"'fast' is not a number"),
        (["--seq-length", "1.5"], r"'1.5' is not a whole number"),
        (["--batch-size", "many"], r"'many' is not a whole number, nor auto"),
        (["--batch-size"], r"Missing value for argument .*--batch-size"),
        (["--lr-scheduler", "step"], r"invalid choice 'step'.*'cosine', 'linear', 'constant'"),
        (["--preset", "huge"], r"invalid choice 'huge'"),
        (["--lr", "nan"], r"--lr nan: a finite number is wanted"),
        (["--lr", "0"], r"--lr 0.0: a number above 0"),
        (["--num-epochs", "-1"], r"--num-epochs -1.0: a number above 0"),
        (["--validation-split-percentage", "100"], r"at least 0 and below 100"),
        (["--pretrained", "--from-scratch"], r"--pretrained and --from-scratch contradict each other"),
        (["--model-name", ""], r"--model-name is empty"),
    ],
)
def test_a_wrong_command_line_gets_one_clear_line(argv, message):
    with pytest.raises(InputError, match=message) as error:
        parse(*argv)
    assert "\n" not in str(error.value)


@given(st.sampled_from(sorted(MINIMUM)), st.integers(min_value=1, max_value=10**6))
def test_every_number_below_its_minimum_is_refused_by_its_option(name: str, below: int):
    value = int(MINIMUM[name]) - below
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} .*at least"):
        parse(f"--{name.replace('_', '-')}={value}")


@given(st.floats(min_value=1e-12, max_value=1e12), st.integers(min_value=1, max_value=2**31))
def test_any_allowed_number_arrives_as_it_was_given(lr: float, batch: int):
    config = parse(f"--lr={lr!r}", f"--batch-size={batch}")
    assert math.isclose(config.lr, lr, rel_tol=0)
    assert config.batch_size == batch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", r"unknown key `batchsize`: did you mean batch_size\?"),
        ('lr = "fast"', r"'fast' is not a number"),
        ("compile = 1", r"`compile` = 1: true or false is wanted"),
        ("lr = true", r"`lr` = true: a value is wanted"),
        ("lr = [1]", r"`lr` = \[1\]: one value is wanted"),
        ("lr = ", r"not TOML"),
        ("training = 1", r"`training` = 1: a table \[training\] is wanted"),
        ("batch-size = -1", r"--batch-size -1: at least 1"),
    ],
)
def test_a_wrong_config_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, message: str):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        parse("--config", str(file))


def test_of_a_file_for_a_whole_run_the_trainer_reads_its_own_table(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text("[cluster]\nnodes = 2\n[training]\nlr = 1e-3\n")
    assert parse("--config", str(file)).lr == 1e-3
    file.write_text("[cluster]\nnodes = 2\n")
    assert parse("--config", str(file)).lr == TrainConfig().lr
    file.write_text("lr = 1e-3\n[training]\nseed = 1\n")
    with pytest.raises(InputError, match=r"`lr` stands outside of \[cluster\] and \[training\]: put it in one"):
        parse("--config", str(file))


def test_a_config_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"--config .*none.toml: No such file"):
        parse("--config", str(tmp_path / "none.toml"))


def test_every_option_explains_itself_in_the_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for field in fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in printed


def test_on_a_terminal_an_error_is_one_line_too_and_nothing_is_coloured():
    for arguments in (["--lr", "fast"], ["--help"]):
        leader, terminal = os.openpty()
        command = [sys.executable, "-m", "training.train_llm", *arguments]
        environ = {**os.environ, "TERM": "xterm-256color"}
        with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT, env=environ):
            os.close(terminal)
            said = b""
            with contextlib.suppress(OSError):  # the end of a terminal
                while part := os.read(leader, 4096):
                    said += part
        os.close(leader)
        assert b"\x1b" not in said
        assert said.startswith((b"error: Error parsing --learning-rate/--lr: 'fast' is not a number\r\n", b"usage: "))


def test_a_wrong_option_is_refused_before_torch_is_imported():
    program = (
        "import sys; from training.train_llm import main; status = main(['--bogus']);"
        "assert status == 64; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: unknown option --bogus")
    assert len(done.stderr.splitlines()) == 1
