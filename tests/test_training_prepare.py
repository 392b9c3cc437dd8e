"""Tokens made ahead, and found at once by every later start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from training import documents, prepare, source
from training.config import TrainConfig
from training.demo import demo_tokenizer
from training.errors import InputError
from training.prepare import DataTokens, data_tokens

DEMO = ["--dataset-name", "demo", "--model-name", "demo", "--seq-length", "64"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit status and what was printed."""
    status = prepare.main(argv)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def request(tmp_path: Path, **options) -> TrainConfig:
    path = tmp_path / "data.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(100)))
    return TrainConfig(dataset_name=str(path), output_dir=tmp_path / "out", **options)


def tokens_of(config: TrainConfig) -> tuple[DataTokens, list[int]]:
    """What a start makes or finds, and its training tokens."""
    with data_tokens(config, demo_tokenizer(), print) as found:
        found.publish()
        return found, found.corpus.train.tolist()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, however new they are."""
    monkeypatch.setattr(source, "SETTLED_SECONDS", 0.0)


@pytest.fixture
def unreadable(settled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A request whose tokens are there, and whose data nobody may read any more."""
    config = request(tmp_path)
    tokens_of(config)

    def refuse(*arguments):
        raise AssertionError("the data was read")

    monkeypatch.setattr(documents, "_load", refuse)
    return config


def test_it_says_what_it_made_and_finds_it_the_second_time(capsys, tmp_path: Path):
    argv = [*DEMO, "--output-dir", str(tmp_path)]
    status, printed = run(capsys, *argv)
    [folder] = (tmp_path / ".cache").glob("tokens-*")
    where, what, how = printed.splitlines()
    assert (status, where) == (0, str(folder))
    assert what.startswith("  5,700 documents, 159,")
    assert how.startswith("  made, in ")
    status, printed = run(capsys, *argv)
    assert (status, printed.splitlines()[:2]) == (0, [where, what])
    assert printed.splitlines()[2].startswith("  found, every byte of it proved, in ")


def test_a_damaged_cache_is_said_and_made_anew(capsys, tmp_path: Path):
    argv = [*DEMO, "--output-dir", str(tmp_path)]
    run(capsys, *argv)
    [folder] = (tmp_path / ".cache").glob("tokens-*")
    os.truncate(folder / "train.bin", 10)
    status, printed = run(capsys, *argv)
    assert status == 0
    assert f"the cache {folder} is damaged (train.bin has 10 bytes" in printed
    assert "  made, in " in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bogus"], "unknown option --bogus"),
        (["--dataset-name", "none.json"], "--dataset-name none.json: no such file or folder"),
        (["--model-name", "./none"], "--model-name ./none: no such folder"),
        (["--streaming"], "--streaming reads a dataset that is too large to download: give --max-train-tokens N"),
        (
            ["--streaming", "--max-train-tokens", "9"],
            "--dataset-name demo is on this machine as it is: leave out",
        ),
        (["--output-dir", "/dev/null"], "/tokens-"),
    ],
)
def test_each_bad_input_is_one_line_and_status_64(capsys, tmp_path: Path, argv, message):
    status, printed = run(capsys, *DEMO, "--output-dir", str(tmp_path / "out"), *argv)
    assert (status, len(printed.splitlines())) == (64, 1)
    assert printed.startswith("error: ")
    assert message in printed
    assert list(tmp_path.iterdir()) == []


def test_help_and_a_wrong_option_load_nothing_heavy():
    program = """if True:
        import runpy, sys
        sys.argv[0] = "prepare"
        try:
            runpy.run_module("training.prepare", run_name="__main__")
        except SystemExit as end:
            print("status", end.code, sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
    """
    for argument, status in (("--help", 0), ("--bogus", 64)):
        done = subprocess.run(
            [sys.executable, "-c", program, argument], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout.splitlines()[-1] == f"status {status} []"
        assert status or "Make a dataset's tokens ahead" in done.stdout


def test_a_second_start_reads_no_data(unreadable: TrainConfig):
    found, _ = tokens_of(unreadable)
    assert not found.is_new


def test_data_in_another_state_is_read_again_and_its_tokens_found_where_the_content_is_the_same(
    settled, tmp_path: Path
):
    config = request(tmp_path)
    made, tokens = tokens_of(config)
    os.utime(config.dataset_name, (1, 1))
    found, same = tokens_of(config)
    assert (found.is_new, found.folder, same) == (False, made.folder, tokens)
    path = Path(config.dataset_name)
    text = path.read_text()
    path.write_text(text.replace("row 7", "row 8"))
    other, _ = tokens_of(config)
    assert other.is_new
    assert other.folder != made.folder


def test_what_was_written_a_moment_ago_is_not_believed_to_stay(tmp_path: Path):
    config = request(tmp_path)
    tokens_of(config)
    state = source.source_state(config.dataset_name)
    assert source.remembered_fingerprint(tmp_path / "out/.cache", config, state) is None


@pytest.mark.parametrize(
    "change", [{"validation_split_percentage": 7.0}, {"text_column": "text"}, {"max_train_tokens": 50}], ids=str
)
def test_another_request_does_not_take_what_was_remembered_for_this_one(settled, tmp_path: Path, change: dict):
    config = request(tmp_path)
    tokens_of(config)
    cache, state = tmp_path / "out/.cache", source.source_state(config.dataset_name)
    assert source.remembered_fingerprint(cache, config, state) is not None
    assert source.remembered_fingerprint(cache, request(tmp_path, **change), state) is None


def test_a_start_without_a_network_finds_what_was_prepared_of_a_hub_dataset(tmp_path: Path, monkeypatch):
    config = TrainConfig(dataset_name="org/data", output_dir=tmp_path)
    cache = tmp_path / ".cache"
    source.remember_fingerprint(cache, config, ["commit 1"], "f")
    assert source.remembered_fingerprint(cache, config, ["commit 1"]) == "f"
    assert source.remembered_fingerprint(cache, config, ["commit 2"]) is None
    monkeypatch.setattr(source, "hub_revision", lambda name: None)
    assert source.remembered_fingerprint(cache, config, source.source_state("org/data")) == "f"


def test_a_stream_is_cached_like_any_other_data(settled, tmp_path: Path, monkeypatch):
    pytest.importorskip("datasets")
    config = request(tmp_path, streaming=True, max_train_tokens=200)
    made, tokens = tokens_of(config)
    assert (made.is_new, len(tokens)) == (True, 200)
    monkeypatch.setattr(documents, "_stream", lambda *arguments: pytest.fail("the data was read"))
    found, same = tokens_of(config)
    assert (found.is_new, same) == (False, tokens)


def test_data_that_changes_while_it_is_tokenised_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch):
    config = request(tmp_path)
    states = iter([["before"], ["after"]])
    monkeypatch.setattr(source, "source_state", lambda name: next(states))
    with pytest.raises(InputError, match=r"data.jsonl was changed while it was read; run the same command again"):
        tokens_of(config)
    assert not (tmp_path / "out").exists()


def test_tokens_that_are_not_published_leave_nothing(tmp_path: Path):
    with data_tokens(request(tmp_path), demo_tokenizer(), print) as found:
        assert found.is_new
    assert not (tmp_path / "out").exists()


def test_content_that_does_not_fit_is_refused_before_it_is_tokenised(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("training.tokens.stage_tokens", lambda *arguments: pytest.fail("tokenised"))

    def check(fingerprint: str) -> None:
        raise InputError("another dataset")

    with pytest.raises(InputError, match="another dataset"):
        with data_tokens(request(tmp_path), demo_tokenizer(), print, check):
            pass


def test_a_refused_start_leaves_an_output_directory_that_was_there_before(tmp_path: Path):
    config = request(tmp_path)
    config.output_dir.mkdir(mode=0o770)
    with pytest.raises(InputError, match="too few"), data_tokens(config, demo_tokenizer(), print):
        raise InputError("too few rows")
    assert list(config.output_dir.iterdir()) == []
