"""Checking a request before it is queued: every bad input is one line, and nothing is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training import check
from training.config import config_from_argv
from training.demo import demo_architecture
from training.documents import load_corpus
from training.run_directory import RunDirectory, write_config

DEMO = ["--dataset-name", "demo", "--model-name", "demo", "--seq-length", "64"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit status and what was printed."""
    status = check.main(argv)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_a_good_request_is_passed_in_silence_and_leaves_nothing(capsys, tmp_path: Path):
    assert run(capsys, "--ranks", "4", *DEMO, "--output-dir", str(tmp_path / "out")) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bogus"], "unknown option --bogus"),
        (["--experiment-name", "a/../b"], "--experiment-name 'a/../b'"),
        (["--dataset-name", "none.json"], "--dataset-name none.json: no such file or folder"),
        (["--model-name", "./none"], "--model-name ./none: no such folder"),
        (["--seq-length", "512"], "--seq-length 512: --model-name demo takes at most 256 tokens"),
        (["--text-column", "body"], "--text-column body: the dataset has no such column"),
        (["--batch-size", "4000"], "too few rows: 5700 documents"),
        (["--max-train-tokens", "100"], "too few rows: 4 documents give 100 tokens"),
        (["--max-steps", "5", "--warmup-steps", "6"], "--warmup-steps 6: the whole run has only 5 steps"),
        (
            ["--output-dir", "/dev/null/a"],
            "the run directory /dev/null/a/default cannot be made: /dev/null is not a directory",
        ),
    ],
)
def test_each_bad_input_is_one_line_and_status_64(capsys, tmp_path: Path, argv, message):
    status, printed = run(capsys, "--ranks", "2", *DEMO, "--output-dir", str(tmp_path / "out"), *argv)
    assert status == 64
    assert printed.startswith("error: ")
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_several_requests_are_checked_in_one_go(capsys, tmp_path: Path):
    out = ["--output-dir", str(tmp_path / "out")]
    assert run(capsys, "--ranks", "4", *DEMO, *out, "--", *DEMO, *out, "-e", "b") == (0, "")
    status, printed = run(
        capsys, "--ranks", "4", *DEMO, *out, "--", *DEMO, *out, "--seq-length", "512", "--", "--bogus"
    )
    assert (status, len(printed.splitlines())) == (64, 1)
    assert "unknown option --bogus" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_resume_with_another_model_is_refused(capsys, tmp_path: Path):
    run_root = tmp_path / "a"
    (run_root / "checkpoints" / "step-00000002").mkdir(parents=True)
    (run_root / "config.json").write_text(json.dumps({"identity": {"--model-name": "gpt2"}}))
    status, printed = run(capsys, *DEMO, "-e", "a", "--output-dir", str(tmp_path))
    assert (status, len(printed.splitlines())) == (64, 1)
    assert "was started with --model-name gpt2, now demo is asked" in printed
    assert "choose another --experiment-name" in printed


def test_a_resume_with_other_content_of_the_same_file_is_refused(capsys, tmp_path: Path):
    data = tmp_path / "data.txt"
    data.write_text("a\n\nb")
    argv = ["--model-name", "demo", "--seq-length", "64", "--dataset-name", str(data), "--output-dir", str(tmp_path)]
    config = config_from_argv([*argv, "-e", "a"], "check")
    (tmp_path / "a" / "checkpoints" / "step-00000002").mkdir(parents=True)
    fingerprint = load_corpus(config).fingerprint
    write_config(RunDirectory(tmp_path / "a"), config, demo_architecture(), fingerprint, 1)
    assert run(capsys, *argv, "-e", "a") == (0, "")
    data.write_text("a\n\nc")
    status, printed = run(capsys, *argv, "-e", "a")
    assert (status, len(printed.splitlines())) == (64, 1)
    assert f"was started with a dataset of fingerprint {fingerprint[:12]}, now " in printed


@pytest.mark.parametrize("ranks", ["0", "many", "-1"])
def test_the_number_of_ranks_is_checked_too(capsys, ranks):
    assert run(capsys, "--ranks", ranks)[1] == f"error: --ranks {ranks}: a number of at least 1 is wanted\n"


def test_it_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "training.check", "--seq-length", "none"], capture_output=True, text=True
    )
    assert done.returncode == 64
    assert done.stderr.startswith("error: ")
    assert "'none' is not a whole number" in done.stderr
