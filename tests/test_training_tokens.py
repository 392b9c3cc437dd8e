"""Documents as tokens: what stands between them, what is cached, and when there are too few."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from tiny_training import flip_a_bit
from training.demo import demo_tokenizer
from training.documents import Columns, Corpus, Documents
from training.errors import InputError
from training.prompt import TextRule
from training.tokens import (
    Blocks,
    check_enough,
    find_fault,
    open_blocks,
    read_questions,
    read_tokens,
    store_tokens,
    token_folder,
    tokenise_corpus,
)


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer()


def corpus(*texts: str, fingerprint: str = "f") -> Corpus:
    table, rule = Columns({"text": list(texts)}), TextRule("text")
    return Corpus(Documents(table, range(len(texts) - 1), rule), Documents(table, [len(texts) - 1], rule), fingerprint)


def test_an_end_of_text_token_follows_every_document(tokenizer):
    tokens = tokenise_corpus(corpus("ab", "c", "d"), tokenizer)
    end = tokenizer.eos_token_id
    assert tokens.train.tolist() == [*tokenizer("ab").input_ids, end, *tokenizer("c").input_ids, end]
    assert tokens.held_out.tolist() == [*tokenizer("d").input_ids, end]
    assert tokens.train.dtype == np.uint16


def test_blank_documents_leave_no_tokens_and_are_not_counted(tokenizer):
    tokens = tokenise_corpus(corpus("", "ab", "  ", "c", "\n"), tokenizer)
    assert tokens.train.tolist() == tokenise_corpus(corpus("ab", "c", "d"), tokenizer).train.tolist()
    assert tokens.documents == 2
    assert tokens.held_out.tolist() == []


def test_blocks_cut_the_tokens_and_leave_the_rest():
    blocks = Blocks(np.arange(11, dtype=np.uint16), 4)
    assert len(blocks) == 2
    assert blocks[1].tolist() == [4, 5, 6, 7]
    assert blocks[1].dtype == np.int64


def test_the_cache_gives_back_what_was_stored(tokenizer, tmp_path: Path):
    made = corpus("ab", "c", "what follows the opening of a text")
    folder = token_folder(made, tokenizer, tmp_path)
    assert read_tokens(folder) is None
    tokens = tokenise_corpus(made, tokenizer)
    store_tokens(folder, tokens)
    store_tokens(folder, tokens)  # A second run that was slower.
    cached = read_tokens(folder)
    assert cached is not None
    assert cached.train.tolist() == tokens.train.tolist()
    assert isinstance(cached.train, np.memmap)
    assert read_questions(folder) == [("what follows", "the opening of a text")]
    assert open_blocks(folder, "train", 2)[0].tolist() == tokens.train[:2].tolist()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.fixture
def cache(tokenizer, tmp_path: Path) -> Path:
    """The cached tokens of three documents."""
    made = corpus("ab", "c", "what follows the opening of a text")
    folder = token_folder(made, tokenizer, tmp_path)
    store_tokens(folder, tokenise_corpus(made, tokenizer))
    return folder


@pytest.mark.parametrize("name", ["train.npy", "held_out.npy", "meta.json"])
@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.unlink(),
    ],
    ids=["bit", "cut", "empty", "zeros", "gone"],
)
def test_a_damaged_cache_is_said_and_made_anew(cache: Path, tokenizer, name: str, damage):
    whole = {path.name: path.read_bytes() for path in cache.iterdir()}
    damage(cache / name)
    said: list[str] = []
    assert read_tokens(cache, said.append) is None
    [line] = said
    assert line.startswith(f"the cache {cache} is damaged ({name}")
    assert line.endswith("): the data is read anew")
    store_tokens(cache, tokenise_corpus(corpus("ab", "c", "what follows the opening of a text"), tokenizer))
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == whole
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_a_host_that_sees_another_size_than_rank_zero_says_so(cache: Path):
    os.truncate(cache / "train.npy", 130)
    with pytest.raises(InputError, match=r"train.npy has 130 bytes here and \d+ where rank 0 read it: this host sees"):
        open_blocks(cache, "train", 2)


BUILD = """
import sys
from pathlib import Path
import numpy as np
from training.tokens import TokenisedCorpus, find_fault, read_tokens, store_tokens
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
for _ in range(20):
    if read_tokens(folder, lambda text: None) is None:
        store_tokens(folder, TokenisedCorpus(np.arange(50000, dtype=np.uint16), np.arange(9, dtype=np.uint16), 3, []))
"""


def build_at_once(folder: Path, count: int) -> None:
    command = [sys.executable, "-c", BUILD, str(folder)]
    jobs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(count)
    ]
    for job in jobs:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
    for job in jobs:
        assert job.stdin is not None
        job.stdin.close()
    assert [job.wait(60) for job in jobs] == [0] * count


def test_jobs_that_make_the_same_cache_at_once_leave_one_whole_one(tmp_path: Path):
    build_at_once(tmp_path / "tokens", 3)
    assert find_fault(tmp_path / "tokens") is None
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_jobs_that_find_the_same_damaged_cache_at_once_leave_one_whole_one(tmp_path: Path):
    build_at_once(tmp_path / "tokens", 1)
    (tmp_path / "tokens" / "train.npy").write_bytes(b"damaged")
    build_at_once(tmp_path / "tokens", 3)
    assert find_fault(tmp_path / "tokens") is None
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_the_cache_is_another_for_other_data_or_another_tokenizer(tokenizer, tmp_path: Path):
    other = demo_tokenizer()
    other.add_tokens(["new"])
    folders = {
        token_folder(corpus("a", "b"), tokenizer, tmp_path),
        token_folder(corpus("a", "b", fingerprint="g"), tokenizer, tmp_path),
        token_folder(corpus("a", "b"), other, tmp_path),
    }
    assert len(folders) == 3


def test_a_host_that_does_not_see_the_tokens_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("training.tokens.VISIBLE_WITHIN_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"train.npy was written by rank 0 and is not there: every host must see"):
        open_blocks(tmp_path, "train", 4)


def test_too_few_rows_for_one_step_per_rank_is_answered_with_the_figures():
    check_enough(tokens=320, documents=9, length=10, ranks=4, batch_size=4, accumulation=2)
    with pytest.raises(
        InputError,
        match=r"too few rows: 9 documents give 319 tokens, or 31 sequences of 10, but one step takes 32 \(4 ranks",
    ):
        check_enough(tokens=319, documents=9, length=10, ranks=4, batch_size=4, accumulation=2)
