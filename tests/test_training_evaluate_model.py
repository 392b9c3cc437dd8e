"""The perplexity of a trained model: the held-out loss of its training, and that of other data."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from training import evaluate_model
from training.evaluate import perplexity

TRAIN = ["--preset", "smoke", "--device", "cpu", "--max-steps", "4", "--ckpt-freq", "2", "--eval-freq", "2"]
TRAIN += ["--seq-length", "32", "--batch-size", "3", "--packing", "varlen", "--max-eval-samples", "5", "-e", "a"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of four steps, evaluated after the second and the fourth."""
    output = tmp_path_factory.mktemp("outputs")
    rows = "".join(json.dumps({"text": f"row {number} of {number % 7}"}) + "\n" for number in range(400))
    (output / "data.jsonl").write_text(rows)
    command = [sys.executable, "-m", "training.train_llm", *TRAIN, "--dataset-name", "data.jsonl", "--output-dir", "."]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=output, env=environment)
    assert done.returncode == 0, done.stderr
    return output / "a"


def evaluated(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    """The result as JSON."""
    status = evaluate_model.main([*argv, "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def test_for_the_data_of_its_run_it_is_the_held_out_loss_that_the_training_told_from_any_folder(run: Path, capsys):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    assert sorted(told) == [2, 4]
    for step, loss in told.items():
        result = evaluated(capsys, str(run), "--checkpoint", str(step))
        assert result["loss"] == pytest.approx(loss, rel=1e-6)
        assert result["perplexity"] == perplexity(result["loss"])
        assert (result["step"], result["split"], result["sequences"]) == (step, "held_out", 5)


def test_its_tokens_are_found_where_the_run_has_them(run: Path, capsys):
    before = set((run.parent / ".cache").glob("tokens-*"))
    evaluated(capsys, str(run))
    evaluated(capsys, str(run))
    # The tokenizer of a checkpoint may be of another class than the one that was trained with.
    assert len(set((run.parent / ".cache").glob("tokens-*")) - before) <= 1


def test_where_the_runs_cache_cannot_be_written_the_tokens_go_to_the_output_directory(
    run: Path, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluated(capsys, str(run))
    (tmp_path / "new.txt").write_text("abcdefgh\n\n" * 40)
    made = Path.mkdir

    def read_only(folder: Path, *arguments, **options) -> None:
        if run.parent in folder.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
        made(folder, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)
    data = ["--dataset-name", str(tmp_path / "new.txt"), "--output-dir", str(tmp_path / "mine")]
    assert evaluated(capsys, str(run), *data)["sequences"] > 0
    assert len(list((tmp_path / "mine/.cache").glob("tokens-*"))) == 1
    (tmp_path / "mine").rename(tmp_path / "moved")
    evaluated(capsys, str(run), "--output-dir", str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()  # the run's cache has the tokens of its own data


def test_other_data_is_read_whole_and_by_split(run: Path, capsys, tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    for name, rows in (("train", 60), ("validation", 40), ("test", 20)):
        (data / f"{name}.jsonl").write_text((json.dumps({"text": "abcdefgh"}) + "\n") * rows)
    place = ["--output-dir", str(tmp_path), "--packing", "concatenated", "--seq-length", "9"]
    model = str(run / "checkpoints/step-00000004")

    def sequences(*argv: str) -> tuple[str, int]:
        result = evaluated(capsys, model, *place, *argv)
        return result["split"], result["sequences"]

    assert sequences("--dataset-name", str(data / "test.jsonl")) == ("train", 20)
    assert sequences("--dataset-name", str(data)) == ("held_out", 60)
    assert sequences("--dataset-name", str(data), "--split", "train") == ("train", 60)
    assert sequences("--dataset-name", str(data), "--split", "test") == ("test", 20)
    assert sequences("--dataset-name", str(data), "--split", "test", "--max-eval-samples", "7") == ("test", 7)


def test_a_split_of_a_saved_dataset_is_taken_by_its_name(run: Path, capsys, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {name: datasets.Dataset.from_dict({"text": ["abcdefgh"] * rows}) for name, rows in (("train", 9), ("x", 5))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "data"))
    argv = [str(run), "--dataset-name", str(tmp_path / "data"), "--seq-length", "9"]
    result = evaluated(capsys, *argv, "--split", "x")
    assert (result["split"], result["sequences"]) == ("x", 5)
    assert evaluate_model.main([*argv, "--split", "y"]) == 64
    assert "has none of that name (there are train, x)" in capsys.readouterr().err


def test_it_prints_lines_for_a_reader(run: Path, capsys):
    assert evaluate_model.main([str(run)]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{run.parent}/data.jsonl, held_out: loss ")
    assert second == "  over 160 tokens in 5 sequences of 32"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--split", "test"], "data.jsonl has that word in its name; give held_out or train, or the file itself"),
        (["--seq-length", "300"], "--seq-length 300: --model-name RUN/checkpoints/step-00000004 takes at most 256"),
        (["--dataset-name", "none.json"], "--dataset-name none.json: no such file or folder"),
        (["--batch-size", "0"], "--batch-size 0: at least 1 is wanted"),
        (["--dataset-name", "RUN/../small.txt"], "its split train has 3 tokens, and a sequence takes 32"),
    ],
)
def test_each_bad_input_is_one_line_and_status_64(run: Path, capsys, argv: list[str], message: str):
    (run.parent / "small.txt").write_text("ab")
    assert evaluate_model.main([str(run), *(word.replace("RUN", str(run)) for word in argv)]) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message.replace("RUN", str(run)) in line


def test_a_folder_without_its_run_is_asked_for_data(run: Path, capsys, tmp_path: Path):
    import shutil

    shutil.copytree(run / "checkpoints/step-00000004", tmp_path / "model")
    assert evaluate_model.main([str(tmp_path / "model")]) == 64
    assert "model does not say which data it was trained on: give --dataset-name\n" in capsys.readouterr().err
