"""Datasets of every kind become documents, or a line that says what is wrong with them."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.documents import is_held_out_file, load_corpus
from training.errors import InputError
from training.prompt import TextRule, alpaca_prompt, text_rule

ROWS = [{"instruction": f"Say {i}.", "input": "" if i % 2 else "aloud", "output": str(i)} for i in range(40)]


def texts(documents) -> list[str]:
    return [text for batch in documents.batches() for text in batch]


def corpus(path: Path, percentage: float = 10.0, column: str | None = None):
    return load_corpus(str(path), None, column, percentage)


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"data{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["instruction", "input", "output"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, suffix: str):
    found = corpus(write(tmp_path, suffix))
    expected = {alpaca_prompt(row["instruction"], row["input"]) + row["output"] for row in ROWS}
    assert set(texts(found.train)) | set(texts(found.held_out)) == expected
    assert (len(found.train), len(found.held_out)) == (36, 4)
    assert not set(texts(found.train)) & set(texts(found.held_out))


def test_the_prompt_is_alpacas_with_and_without_an_input():
    assert "### Input:\nb\n\n### Response:\n" in alpaca_prompt("a", "b")
    assert alpaca_prompt("a", " ").endswith("### Instruction:\na\n\n### Response:\n")
    assert alpaca_prompt("{x}", "{y}").count("{x}") == 1


def test_paragraphs_of_a_text_file_are_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\nline\n\ntwo\n\n\n\nthree\n")
    found = corpus(tmp_path / "a.txt", percentage=0)
    assert texts(found.train) == ["one\nline", "two", "three"]
    assert len(found.held_out) == 0


def test_a_folder_with_a_validation_file_uses_it_as_held_out_documents(tmp_path: Path):
    (tmp_path / "train-1.txt").write_text("a\n\nb")
    (tmp_path / "train-2.txt").write_text("c")
    (tmp_path / "validation.txt").write_text("d")
    found = corpus(tmp_path)
    assert (texts(found.train), texts(found.held_out)) == (["a", "b", "c"], ["d"])


@pytest.mark.parametrize("stem", ["test", "my_Validation-00000-of-00001", "val2", "dev.set", "valid", "eval"])
def test_a_file_is_held_out_if_a_word_of_its_name_says_so(stem: str):
    assert is_held_out_file(stem)


@pytest.mark.parametrize("stem", ["latest", "contest-1", "device", "evaluation_of_shares", "train-test", "data"])
def test_a_file_is_not_held_out_for_a_part_of_a_word_or_beside_the_word_train(stem: str):
    assert not is_held_out_file(stem)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\f", "\x1c"])
def test_a_character_that_only_python_takes_for_a_line_end_splits_no_record(tmp_path: Path, separator: str):
    text = f"one{separator}two"
    (tmp_path / "a.csv").write_text(f"text\n{text}\n", encoding="utf-8")
    assert texts(corpus(tmp_path / "a.csv", 0).train) == [text]
    if separator > "\x1f":  # JSON wants the others escaped.
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
        assert texts(corpus(tmp_path / "a.jsonl", 0).train) == [text]


def test_line_ends_of_windows_are_line_ends_and_those_within_a_csv_field_stay(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    (tmp_path / "a.txt").write_bytes(b"a\r\n\r\nb\r\n")
    (tmp_path / "a.csv").write_bytes(b'text\r\n"a\r\nb"\r\n')
    assert texts(corpus(tmp_path / "a.jsonl", 0).train) == ["a", "b"]
    assert texts(corpus(tmp_path / "a.txt", 0).train) == ["a", "b"]
    assert texts(corpus(tmp_path / "a.csv", 0).train) == ["a\r\nb"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str):
    content = {"a.csv": "text\na\n", "a.jsonl": '{"text": "a"}\n', "a.txt": "a\n"}[name]
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert texts(corpus(tmp_path / name, 0).train) == ["a"]


def test_a_csv_field_may_be_as_long_as_a_document(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert [len(text) for text in texts(corpus(tmp_path / "a.csv", 0).train)] == [200_000]


def test_numbers_in_a_column_become_text_and_nothing_becomes_no_text():
    rows = {"instruction": [7, None], "input": [0, None], "output": [0, 1.5]}
    assert TextRule(None, has_input=True).questions(rows) == [
        (alpaca_prompt("7", "0"), "0"),
        (alpaca_prompt("", ""), "1.5"),
    ]
    assert TextRule("n").texts({"n": [0, None, 2]}) == ["0", "", "2"]


def test_blank_rows_are_no_documents(tmp_path: Path):
    rows = [{"text": text} for text in ("", "a", " \n", None, "b c")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    documents = corpus(tmp_path / "a.json", 0).train
    assert texts(documents) == ["a", "b c"]
    assert documents.questions(5) == [("a", ""), ("b", "c")]


def test_a_saved_dataset_with_its_own_test_split_is_read(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(3)]}) for name in ("train", "test")}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    found = corpus(tmp_path / "saved")
    assert texts(found.train) == ["train 0", "train 1", "train 2"]
    assert texts(found.held_out) == ["test 0", "test 1", "test 2"]


def test_the_same_documents_are_held_out_every_time(tmp_path: Path):
    path = write(tmp_path, ".json")
    assert texts(corpus(path).held_out) == texts(corpus(path).held_out)
    assert corpus(path).fingerprint == corpus(path).fingerprint


def test_the_fingerprint_follows_content_and_split(tmp_path: Path):
    path = write(tmp_path, ".json")
    before = corpus(path).fingerprint
    assert corpus(path, percentage=20).fingerprint != before
    path.write_text(json.dumps(ROWS[1:]))
    assert corpus(path).fingerprint != before


def test_a_column_can_be_chosen_and_one_that_is_missing_is_answered_with_those_there_are(tmp_path: Path):
    path = write(tmp_path, ".json")
    assert texts(corpus(path, 0, "output").train)[:2] == ["0", "1"]
    with pytest.raises(InputError, match=r"--text-column body: .* but `instruction`, `input`, `output`"):
        corpus(path, column="body")
    with pytest.raises(InputError, match=r"neither a column `text` nor .* but `title`, `body`; .*--text-column"):
        text_rule(["title", "body"], None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1, 2]", r"every row must be an object"),
        ("a.json", "{", r"cannot be read as .json"),
        ("a.jsonl", '{"text": "a"}\nnonsense\n', r"cannot be read as .jsonl"),
        ("a.json", "[]", r"no rows in it"),
        ("a.txt", "\n\n", r"no rows in it"),
        ("a.parquet", "nonsense", r"cannot be read as .parquet"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        corpus(tmp_path / name)


def test_a_file_or_folder_that_is_not_there_is_answered_with_what_to_give(tmp_path: Path):
    with pytest.raises(InputError, match=r"no such file or folder; give a local json.*--dataset-name demo"):
        corpus(tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no .json, .jsonl, .csv, .parquet, .txt file in that folder"):
        corpus(tmp_path / "empty")


def test_a_hub_name_without_a_network_is_one_prompt_error(tmp_path: Path):
    pytest.importorskip("datasets")
    # A proxy where nothing listens stands for the missing network, also where the tests have one.
    closed = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9"
    )
    program = "from training.documents import load_corpus; load_corpus('tatsu-lab/alpaca', None, None, 5.0)"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | closed | {"HF_HOME": str(tmp_path)},
    )
    assert "InputError: --dataset-name tatsu-lab/alpaca: the hub cannot be reached" in done.stderr, done.stderr
    assert "--dataset-name demo" in done.stderr
    assert time.monotonic() - began < 20
