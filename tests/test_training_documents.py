"""Datasets of every kind become documents, or a line that says what is wrong with them."""

import csv
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import TrainConfig
from training.documents import NOT_HELD_OUT, SPLIT_SEED, is_held_out_file, load_corpus, split_places
from training.errors import InputError
from training.prompt import TextRule, alpaca_prompt, text_rule

ROWS = [{"instruction": f"Say {i}.", "input": "" if i % 2 else "aloud", "output": str(i)} for i in range(40)]


def split(corpus) -> tuple[list[str], list[str]]:
    """The documents to train on, in order, and those held out, by their places; blank ones are there too."""
    placed: dict[int, str] = {}
    train: list[str] = []
    for batch in [*corpus.batches(), *corpus.own_held_out()]:
        for text, place in zip(batch.texts, batch.places.tolist(), strict=True):
            if place == NOT_HELD_OUT:
                train.append(text)
            else:
                assert place not in placed
                placed[place] = text
    return train, [placed[place] for place in range(len(placed))]


def texts(corpus) -> list[str]:
    return split(corpus)[0]


def corpus(path: Path, percentage: float = 10.0, column: str | None = None):
    return load_corpus(TrainConfig(dataset_name=str(path), text_column=column, validation_split_percentage=percentage))


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
    train, held_out = split(found)
    assert set(train) | set(held_out) == expected
    assert (len(train), len(held_out)) == (36, 4)
    assert not set(train) & set(held_out)


def test_the_prompt_is_alpacas_with_and_without_an_input():
    assert "### Input:\nb\n\n### Response:\n" in alpaca_prompt("a", "b")
    assert alpaca_prompt("a", " ").endswith("### Instruction:\na\n\n### Response:\n")
    assert alpaca_prompt("{x}", "{y}").count("{x}") == 1


def test_paragraphs_of_a_text_file_are_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\nline\n\ntwo\n\n\n\nthree\n")
    assert split(corpus(tmp_path / "a.txt", percentage=0)) == (["one\nline", "two", "three"], [])


def test_a_folder_with_a_validation_file_uses_it_as_held_out_documents(tmp_path: Path):
    (tmp_path / "train-1.txt").write_text("a\n\nb")
    (tmp_path / "train-2.txt").write_text("c")
    (tmp_path / "validation.txt").write_text("d")
    assert split(corpus(tmp_path)) == (["a", "b", "c"], ["d"])


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
    assert texts(corpus(tmp_path / "a.csv", 0)) == [text]
    if separator > "\x1f":  # JSON wants the others escaped.
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
        assert texts(corpus(tmp_path / "a.jsonl", 0)) == [text]


def test_line_ends_of_windows_are_line_ends_and_those_within_a_csv_field_stay(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    (tmp_path / "a.txt").write_bytes(b"a\r\n\r\nb\r\n")
    (tmp_path / "a.csv").write_bytes(b'text\r\n"a\r\nb"\r\n')
    assert texts(corpus(tmp_path / "a.jsonl", 0)) == ["a", "b"]
    assert texts(corpus(tmp_path / "a.txt", 0)) == ["a", "b"]
    assert texts(corpus(tmp_path / "a.csv", 0)) == ["a\r\nb"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str):
    content = {"a.csv": "text\na\n", "a.jsonl": '{"text": "a"}\n', "a.txt": "a\n"}[name]
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert texts(corpus(tmp_path / name, 0)) == ["a"]


def test_a_character_that_json_writes_as_two_halves_is_one(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n')
    assert texts(corpus(tmp_path / "a.jsonl", 0)) == ["😀"]


def test_a_csv_field_may_be_as_long_as_a_document(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert [len(text) for text in texts(corpus(tmp_path / "a.csv", 0))] == [200_000]


def test_numbers_in_a_column_become_text_and_nothing_becomes_no_text():
    rows = {"instruction": [7, None], "input": [0, None], "output": [0, 1.5]}
    assert TextRule(None, has_input=True).questions(rows) == [
        (alpaca_prompt("7", "0"), "0"),
        (alpaca_prompt("", ""), "1.5"),
    ]
    assert TextRule("n").texts({"n": [0, None, 2]}) == ["0", "", "2"]


def test_a_row_without_a_value_is_blank(tmp_path: Path):
    rows = [{"text": text} for text in ("", "a", " \n", None, "b c")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert [text for text in texts(corpus(tmp_path / "a.json", 0)) if text.strip()] == ["a", "b c"]


def test_a_saved_dataset_with_its_own_test_split_is_read(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(3)]}) for name in ("train", "test")}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    train, held_out = split(corpus(tmp_path / "saved"))
    assert train == ["train 0", "train 1", "train 2"]
    assert held_out == ["test 0", "test 1", "test 2"]


def test_the_same_documents_are_held_out_every_time(tmp_path: Path):
    path = write(tmp_path, ".json")
    assert split(corpus(path))[1] == split(corpus(path))[1]
    assert corpus(path).fingerprint == corpus(path).fingerprint


@given(st.integers(1, 200), st.floats(0.01, 99.9))
def test_the_share_that_is_asked_is_held_out_but_never_nothing_and_never_all(rows: int, percentage: float):
    places = split_places(rows, percentage)
    held_out = sorted(place for place in places.tolist() if place != NOT_HELD_OUT)
    assert held_out == list(range(min(rows - 1, max(1, round(rows * percentage / 100)))))


def test_a_file_of_more_rows_than_are_read_at_once_keeps_their_order_and_their_split(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(2500)))
    train, held_out = split(corpus(tmp_path / "a.jsonl", 1.0))
    assert [int(text) for text in train] == [i for i in range(2500) if str(i) not in held_out]
    order = list(range(2500))
    random.Random(SPLIT_SEED).shuffle(order)
    assert [int(text) for text in held_out] == order[:25]


def test_a_file_that_grows_between_its_two_readings_is_refused(tmp_path: Path):
    path = write(tmp_path, ".jsonl")
    found = corpus(path)
    with path.open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(InputError, match="the dataset was changed while it was read; run the same command again"):
        split(found)


def streamed(path: Path, percentage: float = 10.0, most: int = 10**6):
    request = TrainConfig(dataset_name=str(path), validation_split_percentage=percentage)
    return load_corpus(replace(request, streaming=True, max_train_tokens=most))


def test_a_stream_holds_out_its_share_of_every_thousand_documents_the_same_ones_each_time(tmp_path: Path):
    pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(2500)))
    train, held_out = split(streamed(tmp_path / "a.jsonl", 1.0))
    assert [sum(int(text) // 1000 == part for text in held_out) for part in range(3)] == [10, 10, 5]
    assert sorted(map(int, train + held_out)) == list(range(2500))
    assert split(streamed(tmp_path / "a.jsonl", 1.0)) == (train, held_out)


def test_a_stream_reads_no_more_than_is_asked_of_it(tmp_path: Path):
    pytest.importorskip("datasets")
    good = [json.dumps({"text": str(i)}) + "\n" for i in range(2000)]
    (tmp_path / "train-1.jsonl").write_text("".join(good))
    (tmp_path / "train-2.jsonl").write_text("this is no JSON\n")
    batches = streamed(tmp_path).batches()
    assert [len(batch.texts) for _, batch in zip(range(2), batches, strict=False)] == [1000, 1000]


def test_a_stream_that_breaks_off_is_one_line(tmp_path: Path):
    pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + "no JSON")
    with pytest.raises(InputError, match=r"the stream of --dataset-name .*a.jsonl broke off \(JSON parse error"):
        split(streamed(tmp_path / "a.jsonl"))


def test_a_stream_uses_a_validation_file_as_held_out_documents(tmp_path: Path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "b"}) + "\n")
    assert split(streamed(tmp_path)) == (["a"], ["b"])


@pytest.mark.parametrize(
    ("names", "kinds"), [(["a.txt"], ".txt"), (["a.csv"], ".csv"), (["a.jsonl", "b.parquet"], ".jsonl, .parquet")]
)
def test_files_that_a_stream_would_cut_otherwise_are_refused(tmp_path: Path, names: list[str], kinds: str):
    for name in names:
        (tmp_path / name).write_text("one\ntwo\n\nthree\n")
    with pytest.raises(InputError, match=f"json or parquet files of one kind.*, and these are {kinds}; leave out"):
        streamed(tmp_path)


def test_another_number_of_tokens_is_another_corpus(tmp_path: Path):
    path = str(write(tmp_path, ".json"))
    found = {load_corpus(TrainConfig(dataset_name=path, max_train_tokens=most)).fingerprint for most in (None, 10, 20)}
    assert len(found) == 3


def test_a_stream_without_a_network_says_where_to_prepare_it(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("training.documents.hub_revision", lambda name: None)
    with pytest.raises(InputError, match=r"hub cannot be reached, and --streaming reads from there; run `python -m"):
        load_corpus(TrainConfig(dataset_name="org/large", streaming=True, max_train_tokens=10))


def test_the_fingerprint_follows_content_and_split(tmp_path: Path):
    path = write(tmp_path, ".json")
    before = corpus(path).fingerprint
    assert corpus(path, percentage=20).fingerprint != before
    path.write_text(json.dumps(ROWS[1:]))
    assert corpus(path).fingerprint != before


def test_a_column_can_be_chosen_and_one_that_is_missing_is_answered_with_those_there_are(tmp_path: Path):
    path = write(tmp_path, ".json")
    assert texts(corpus(path, 0, "output"))[:2] == ["0", "1"]
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
        ("a.jsonl", '{"text": "a"}\n{"text": "half a character: \\ud83d"}\n', r"cannot be read as .jsonl .*surrogates"),
        ("a.json", '[{"text": "\\uDE00"}]', r"cannot be read as .json .*surrogates"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, r"cannot be read as .jsonl .*recursion"),
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
    program = (
        "import time, datasets\n"
        "from training.config import TrainConfig\n"
        "from training.documents import load_corpus\n"
        "began = time.monotonic()\n"
        "try: load_corpus(TrainConfig(dataset_name='tatsu-lab/alpaca'))\n"
        "finally: print(time.monotonic() - began)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | closed | {"HF_HOME": str(tmp_path)},
    )
    assert "InputError: --dataset-name tatsu-lab/alpaca: the hub cannot be reached" in done.stderr, done.stderr
    assert "--dataset-name demo" in done.stderr
    assert float(done.stdout) < 20
