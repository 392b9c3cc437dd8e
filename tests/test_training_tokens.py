"""Documents as tokens: what stands between them, what is cached, and when there are too few."""

from pathlib import Path

import numpy as np
import pytest

from training.demo import demo_tokenizer
from training.documents import Columns, Corpus, Documents
from training.errors import InputError
from training.prompt import TextRule
from training.tokens import (
    Blocks,
    check_enough,
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
