"""Documents as tokens: what stands between them, what is cached, how it is proved, and when there are too few."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from tiny_training import flip_a_bit
from training import proof, tokenise
from training.config import TrainConfig
from training.demo import demo_tokenizer
from training.documents import NOT_HELD_OUT, Batch, Corpus, load_corpus
from training.errors import InputError
from training.prompt import TextRule
from training.tables import Columns
from training.tokenise import count_tokens, tokenised
from training.tokens import (
    Blocks,
    TokenisedCorpus,
    check_enough,
    find_fault,
    open_blocks,
    open_tokens,
    publish_tokens,
    read_questions,
    read_tokens,
    stage_tokens,
    token_folder,
)

FILES = ["held_out.bin", "meta.json", "train.bin"]


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer()


def corpus(*texts: str) -> Corpus:
    """The last one is held out."""
    *train, held_out = texts
    return Corpus(Columns({"text": train}), Columns({"text": [held_out]}), TextRule("text"), "f")


def tokenise_into(folder: Path, made: Any, tokenizer: Any) -> TokenisedCorpus:
    publish_tokens(stage_tokens(folder, made, tokenizer), folder)
    return open_tokens(folder)


def test_an_end_of_text_token_follows_every_document(tokenizer, tmp_path: Path):
    tokens = tokenise_into(tmp_path / "t", corpus("ab", "c", "d"), tokenizer)
    end = tokenizer.eos_token_id
    assert tokens.train.tolist() == [*tokenizer("ab").input_ids, end, *tokenizer("c").input_ids, end]
    assert tokens.held_out.tolist() == [*tokenizer("d").input_ids, end]
    assert tokens.train.dtype == np.uint16


def test_a_vocabulary_that_needs_more_than_16_bits_gets_32(tokenizer, tmp_path: Path):
    class Large:
        eos_token_id = 70_000

        def get_vocab(self):
            return {"": 70_000, "x": 65_537, "xx": 65_538}  # their numbers count, not how many there are

        def __call__(self, texts, **options):
            return {"input_ids": [[65_536 + len(text)] for text in texts]}

    tokens = tokenise_into(tmp_path / "t", corpus("ab", "c"), Large())
    assert (tokens.train.dtype, tokens.train.tolist()) == (np.uint32, [65_538, 70_000])


def test_the_fast_way_through_the_tokenizers_library_gives_what_a_call_gives(shared_data: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared_data / "gpt2")
    # Settings that a tokenizer's file may carry, and that do not hold for a call.
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding()
    path = str(shared_data / "gsm8k_alpaca.json")
    data = load_corpus(TrainConfig(dataset_name=path, validation_split_percentage=0.0))
    texts = next(data.batches()).texts[:300]
    tokens = tokenise_into(tmp_path / "t", corpus(*texts, "held out"), tokenizer)
    expected = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert tokens.train.tolist() == [token for ids in expected for token in ids]


def test_held_out_tokens_stand_in_the_order_of_their_places(tokenizer, tmp_path: Path):
    words = [f"word {number}" for number in range(2500)]
    made = Corpus(Columns({"text": words}), None, TextRule("text"), "f", held_out_percentage=50.0)
    placed = {place: text for batch in made.batches() for text, place in zip(batch.texts, batch.places, strict=True)}
    held_out = [placed[place] for place in range(1250)]
    tokens = tokenise_into(tmp_path / "t", made, tokenizer)
    end = tokenizer.eos_token_id
    assert tokens.held_out.tolist() == [token for text in held_out for token in [*tokenizer(text).input_ids, end]]
    assert [question for question, _ in read_questions(tmp_path / "t")][:2] == ["word", "word"]
    assert [answer for _, answer in read_questions(tmp_path / "t")] == [text.split()[1] for text in held_out[:64]]


def test_batches_that_are_cut_for_memory_change_nothing(tokenizer, tmp_path: Path, monkeypatch):
    words = ["what follows", "", "an opening", "a", "bird", "held out"]
    whole = tokenise_into(tmp_path / "a", corpus(*words), tokenizer)
    monkeypatch.setattr(tokenise, "MOST_CHARACTERS", 3)
    assert tokenise_into(tmp_path / "b", corpus(*words), tokenizer).train.tolist() == whole.train.tolist()


def test_data_is_read_only_a_few_batches_ahead_of_what_is_written(tokenizer):
    taken: list[int] = []

    def batches():
        for number in range(50):
            taken.append(number)
            yield Batch(["ab"], np.array([NOT_HELD_OUT]))

    written = tokenised(batches(), tokenizer)
    next(written)
    assert len(taken) == tokenise.BATCHES_AT_ONCE + 1
    assert len(list(written)) == 49


def test_no_more_tokens_are_taken_than_are_asked(tokenizer, tmp_path: Path):
    words = [f"word {number}" for number in range(3000)]
    whole = tokenise_into(tmp_path / "a", Corpus(Columns({"text": words}), None, TextRule("text"), "f"), tokenizer)
    made = Corpus(Columns({"text": words}), Columns({"text": ["b"]}), TextRule("text"), "f", most_tokens=100)
    tokens = tokenise_into(tmp_path / "b", made, tokenizer)
    assert tokens.train.tolist() == whole.train[:100].tolist()
    assert tokens.documents == np.count_nonzero(tokens.train[:-1] == tokenizer.eos_token_id) + 1
    assert len(tokens.held_out) == 2


def test_blank_documents_leave_no_tokens_and_are_not_counted(tokenizer, tmp_path: Path):
    tokens = tokenise_into(tmp_path / "a", corpus("", "ab", "  ", "c", "\n"), tokenizer)
    assert tokens.train.tolist() == tokenise_into(tmp_path / "b", corpus("ab", "c", "d"), tokenizer).train.tolist()
    assert tokens.documents == 2
    assert tokens.held_out.tolist() == []


def test_counting_stops_where_there_are_enough(tokenizer):
    table = Columns({"text": ["ab"] * 20_000})
    made = Corpus(table, None, TextRule("text"), "f")
    assert count_tokens(made, tokenizer, 10**9) == (20_000 * len(tokenizer("ab").input_ids) + 20_000, 20_000)
    tokens, documents = count_tokens(made, tokenizer, 10)
    assert tokens >= 10
    assert documents < 20_000


def test_blocks_cut_the_tokens_and_leave_the_rest():
    blocks = Blocks(np.arange(11, dtype=np.uint16), 4)
    assert len(blocks) == 2
    assert blocks[1].tolist() == [4, 5, 6, 7]
    assert blocks[1].dtype == np.int64
    into = np.zeros((2, 4), np.uint16)
    assert blocks.take([1, 0], into) is into
    assert into.tolist() == blocks.take([1, 0]).tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    with pytest.raises(IndexError):
        blocks.take([2])


TEXTS = ("ab", "c", "what follows the opening of a text")


def test_the_cache_gives_back_what_was_stored(tokenizer, tmp_path: Path):
    folder = token_folder("f", tokenizer, tmp_path)
    assert read_tokens(folder) is None
    tokens = tokenise_into(folder, corpus(*TEXTS), tokenizer)
    tokenise_into(folder, corpus(*TEXTS), tokenizer)  # A second run that was slower.
    cached = read_tokens(folder)
    assert cached is not None
    assert cached.train.tolist() == tokens.train.tolist()
    assert isinstance(cached.train, np.memmap)
    assert read_questions(folder) == [("what follows", "the opening of a text")]
    assert open_blocks(folder, "train", 2)[0].tolist() == tokens.train[:2].tolist()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_a_killed_process_left_aside_is_removed_and_what_a_living_one_makes_is_not(tokenizer, tmp_path: Path):
    folder = token_folder("f", tokenizer, tmp_path)
    made = [stage_tokens(folder, corpus(*TEXTS), tokenizer)]
    name, _, _ = made[0].name.rpartition(".")
    over = subprocess.Popen(["true"])
    over.wait()
    for number in (over.pid, os.getppid()):
        made.append(made[0].with_name(f"{name}.{number}"))
        made[-1].mkdir()
    tokenise_into(folder, corpus(*TEXTS), tokenizer)
    assert sorted(folder.parent.iterdir()) == sorted([folder, made[2]])


@pytest.fixture
def cache(tokenizer, tmp_path: Path) -> Path:
    """The cached tokens of three documents."""
    folder = token_folder("f", tokenizer, tmp_path)
    tokenise_into(folder, corpus(*TEXTS), tokenizer)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("name", FILES)
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
    whole = content(cache)
    damage(cache / name)
    said: list[str] = []
    assert read_tokens(cache, said.append) is None
    [line] = said
    assert line.startswith(f"the cache {cache} is damaged ({name}")
    assert line.endswith("): the data is read anew")
    tokenise_into(cache, corpus(*TEXTS), tokenizer)
    assert content(cache) == whole
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


@pytest.fixture
def read_chunks(cache: Path, monkeypatch) -> list[int]:
    """Where each chunk that was read begins; there are many in the cache's files."""
    monkeypatch.setattr(proof, "CHUNK", 2)
    monkeypatch.setattr(tokenise, "CHUNK", 2)
    read: list[int] = []
    pread = os.pread

    def counted(file: int, size: int, start: int) -> bytes:
        read.append(start)
        return pread(file, size, start)

    monkeypatch.setattr(os, "pread", counted)
    return read


def test_a_start_reads_a_part_of_what_nobody_has_written_to_since_it_was_proved(
    read_chunks: list[int], tokenizer, tmp_path: Path
):
    folder = tmp_path / "many"
    tokenise_into(folder, corpus(*TEXTS), tokenizer)
    chunks = sum(len(open_blocks(folder, part, 1)) for part in ("train", "held_out"))
    assert chunks > proof.CHUNKS_AT_A_LOOK
    assert read_tokens(folder) is not None
    assert len(read_chunks) == proof.CHUNKS_AT_A_LOOK
    read_chunks.clear()
    assert read_tokens(folder, whole=True) is not None
    assert len(read_chunks) == chunks


def test_a_file_that_was_written_to_is_read_as_a_whole_once(read_chunks: list[int], tokenizer, tmp_path: Path):
    folder = tmp_path / "many"
    tokenise_into(folder, corpus(*TEXTS), tokenizer)
    os.utime(folder / "train.bin", (1, 1))
    assert read_tokens(folder) is not None
    assert len(read_chunks) > proof.CHUNKS_AT_A_LOOK
    read_chunks.clear()
    assert read_tokens(folder) is not None
    assert len(read_chunks) == proof.CHUNKS_AT_A_LOOK


def test_damage_without_a_trace_is_found_by_the_looks_of_a_few_starts(
    read_chunks: list[int], tokenizer, tmp_path: Path
):
    folder = tmp_path / "many"
    tokenise_into(folder, corpus(*TEXTS), tokenizer)
    flip_a_bit(folder / "held_out.bin")
    # As if the disk had done it: the identity is that of the last proof.
    proved = {name: proof.identity(folder / name) for name in ("train.bin", "held_out.bin")}
    (folder / "proved.json").write_text(json.dumps(proved))
    said: list[str] = []
    looks = [read_tokens(folder, said.append) for _ in range(200)]
    assert None in looks
    assert "held_out.bin has another hash" in said[0]
    assert read_tokens(folder, said.append, whole=True) is None


def test_a_host_that_sees_another_size_than_rank_zero_says_so(cache: Path):
    os.truncate(cache / "train.bin", 130)
    with pytest.raises(InputError, match=r"train.bin has 130 bytes here and \d+ where rank 0 read it: this host sees"):
        open_blocks(cache, "train", 2)


BUILD = """
import sys
from pathlib import Path
from training.documents import Corpus
from training.prompt import TextRule
from training.tables import Columns
from training.tokens import publish_tokens, read_tokens, stage_tokens
class Letters:
    eos_token_id = 0
    def get_vocab(self): return {chr(number): number for number in range(256)}
    def __len__(self): return 256
    def __call__(self, texts, **options): return {"input_ids": [list(text.encode()) for text in texts]}
folder, tokenizer = Path(sys.argv[1]), Letters()
corpus = Corpus(Columns({"text": ["some words"] * 2000}), None, TextRule("text"), "f")
print("ready", flush=True)
sys.stdin.read()
for _ in range(20):
    if read_tokens(folder, lambda text: None) is None:
        publish_tokens(stage_tokens(folder, corpus, tokenizer), folder)
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
    (tmp_path / "tokens" / "train.bin").write_bytes(b"damaged")
    build_at_once(tmp_path / "tokens", 3)
    assert find_fault(tmp_path / "tokens") is None
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_the_cache_is_another_for_other_data_or_another_tokenizer(tokenizer, tmp_path: Path):
    other = demo_tokenizer()
    other.add_tokens(["new"])
    folders = {
        token_folder("f", tokenizer, tmp_path),
        token_folder("g", tokenizer, tmp_path),
        token_folder("f", other, tmp_path),
    }
    assert len(folders) == 3


def test_a_host_that_does_not_see_the_tokens_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("training.tokens.VISIBLE_WITHIN_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"train.bin was written by rank 0 and is not there: every host must see"):
        open_blocks(tmp_path, "train", 4)


def test_too_few_rows_for_one_step_per_rank_is_answered_with_the_figures():
    check_enough(tokens=320, documents=9, length=10, ranks=4, batch_size=4, accumulation=2)
    with pytest.raises(
        InputError,
        match=r"too few rows: 9 documents give 319 tokens, or 31 sequences of 10, but one step takes 32 \(4 ranks",
    ):
        check_enough(tokens=319, documents=9, length=10, ranks=4, batch_size=4, accumulation=2)
