"""Documents become one long row of tokens, in a stream from the data to the disk.

An end-of-text token stands after every document. Texts go through the tokenizer's own threads in batches; memory
holds a few batches, however large the data is.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.documents import NOT_HELD_OUT, Batch, Corpus, StreamedCorpus
from training.errors import InputError
from training.model import largest_token
from training.prompt import question_of
from training.proof import CHUNK, chunk_hash
from training.tables import BATCH
from training.whole_file import force_to_disk

QUESTIONS = 64
# A token takes about a hundred bytes while the tokenizer holds it. Batches are cut here, for documents of any length.
MOST_CHARACTERS = 2**21
# Two batches are tokenised at once, so that the threads have work while one batch's last document is being finished.
BATCHES_AT_ONCE = 2

Encode = Callable[[Sequence[str]], list[list[int]]]


class TokenFile:
    """A file of tokens that is being written, little-endian and without a header."""

    def __init__(self, path: Path, kind: np.dtype) -> None:
        self.path, self.kind = path, kind
        self.count = 0
        self._file = path.open("wb")
        self._hashes: list[str] = []
        self._chunk = bytearray()

    def write(self, tokens: np.ndarray) -> None:
        """Append these."""
        content = tokens.astype(self.kind).tobytes()
        self._file.write(content)
        self.count += len(tokens)
        while content:
            room = CHUNK - len(self._chunk)
            self._chunk += content[:room]
            content = content[room:]
            if len(self._chunk) == CHUNK:
                self._end_chunk()

    def close(self) -> list[str]:
        """Force it to disk; the hashes of its chunks."""
        if self._chunk:
            self._end_chunk()
        self._file.close()
        force_to_disk(self.path)
        return self._hashes

    def _end_chunk(self) -> None:
        self._hashes.append(chunk_hash(self._chunk))
        self._chunk = bytearray()


class Tokenised(NamedTuple):
    """A document that is not blank."""

    text: str
    place: int
    """As in `Batch.places`."""
    ids: list[int]
    """Its tokens and the end-of-text token."""


@dataclass(frozen=True)
class Written:
    """What came out."""

    kind: str
    """The type of a token, by numpy's name."""
    documents: int
    """Training documents that are not blank."""
    questions: list[tuple[str, str]]
    """Held-out prompts with the answers that the data gives to them."""
    hashes: dict[str, list[str]]
    """Of every chunk of each file, by its name."""


class HeldOutFile:
    """The held-out tokens that are being written: first as they come, at the end in the order of their places."""

    def __init__(self, path: Path, kind: np.dtype) -> None:
        self._path, self._kind = path, kind
        self._aside = path.with_name(f"{path.name}.unordered")
        self._unordered = TokenFile(self._aside, kind)
        self._places, self._lengths = array("q"), array("q")
        self._opening: dict[int, str] = {}

    @property
    def count(self) -> int:
        """Tokens so far."""
        return self._unordered.count

    def write(self, documents: Sequence[Tokenised]) -> None:
        """Append these."""
        self._unordered.write(packed(documents))
        self._places.extend(document.place for document in documents)
        self._lengths.extend(len(document.ids) for document in documents)
        self._opening |= {document.place: document.text for document in documents if document.place < QUESTIONS}

    def questions(self) -> list[tuple[str, str]]:
        """The prompts of the first `QUESTIONS` places, with the answers that the data gives to them."""
        return [question_of(self._opening[place]) for place in sorted(self._opening)]

    def close(self) -> list[str]:
        """Order them; the hashes of the file's chunks."""
        self._unordered.close()
        tokens = read_array(self._aside, self._kind)
        lengths = np.frombuffer(self._lengths, np.int64)
        ends = np.cumsum(lengths)
        ordered = TokenFile(self._path, self._kind)
        for documents in np.array_split(np.argsort(self._places), max(1, len(lengths) // BATCH)):
            parts = [tokens[ends[number] - lengths[number] : ends[number]] for number in documents]
            ordered.write(np.concatenate(parts) if parts else tokens[:0])
        self._aside.unlink()
        return ordered.close()


def write_tokens(corpus: Corpus | StreamedCorpus, tokenizer: Any, train: Path, held_out: Path) -> Written:
    """Tokenise a corpus into two files.

    Raises:
        InputError: the tokenizer has no end-of-text token.
        OSError: a file cannot be written.
    """
    end = end_of_text(tokenizer)
    # 16 bits a token where the vocabulary allows.
    kind = np.dtype(np.uint16 if max(end, largest_token(tokenizer)) < 2**16 else np.uint32)
    train_file, held_out_file = TokenFile(train, kind), HeldOutFile(held_out, kind)
    documents = 0
    for batch in tokenised(corpus.batches(), tokenizer):
        held_out_file.write([document for document in batch if document.place != NOT_HELD_OUT])
        trained = [document for document in batch if document.place == NOT_HELD_OUT]
        if corpus.most_tokens is not None:
            trained = _up_to(trained, corpus.most_tokens - train_file.count)
        train_file.write(packed(trained))
        documents += len(trained)
        if train_file.count == corpus.most_tokens:
            break
    for batch in tokenised(corpus.own_held_out(), tokenizer):
        held_out_file.write(batch)
        if corpus.most_held_out is not None and held_out_file.count >= corpus.most_held_out:
            break
    questions = held_out_file.questions()
    hashes = {train.name: train_file.close(), held_out.name: held_out_file.close()}
    return Written(kind.name, documents, questions, hashes)


def _up_to(documents: Sequence[Tokenised], tokens: int) -> list[Tokenised]:
    """The first documents, of which the last may be cut, of so many tokens."""
    kept: list[Tokenised] = []
    for document in documents:
        if tokens <= 0:
            break
        kept.append(document._replace(ids=document.ids[:tokens]))
        tokens -= len(document.ids)
    return kept


def count_tokens(corpus: Corpus | StreamedCorpus, tokenizer: Any, enough: int) -> tuple[int, int]:
    """Training tokens and documents, counted until there are `enough` of them."""
    tokens = documents = 0
    for batch in tokenised(corpus.batches(), tokenizer):
        trained = [document for document in batch if document.place == NOT_HELD_OUT]
        if corpus.most_tokens is not None:
            trained = _up_to(trained, corpus.most_tokens - tokens)
        tokens, documents = tokens + sum(len(document.ids) for document in trained), documents + len(trained)
        if tokens >= enough or tokens == corpus.most_tokens:
            break
    return tokens, documents


def tokenised(batches: Iterable[Batch], tokenizer: Any) -> Iterator[list[Tokenised]]:
    """The documents that are not blank, in order, with the end-of-text token after each.

    Raises:
        InputError: the tokenizer has none.
    """
    end, encode = end_of_text(tokenizer), encoder(tokenizer)

    def encoded(texts: Sequence[str], places: Sequence[int]) -> list[Tokenised]:
        return [
            Tokenised(text, place, [*ids, end]) for text, place, ids in zip(texts, places, encode(texts), strict=True)
        ]

    waiting: deque[Future[list[Tokenised]]] = deque()
    with ThreadPoolExecutor(BATCHES_AT_ONCE) as pool:
        for texts, places in _cut(batches):
            waiting.append(pool.submit(encoded, texts, places))
            if len(waiting) > BATCHES_AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _cut(batches: Iterable[Batch]) -> Iterator[tuple[list[str], list[int]]]:
    """The documents that are not blank, in batches of as many characters as memory bears."""
    for batch in batches:
        texts: list[str] = []
        places: list[int] = []
        characters = 0
        for text, place in zip(batch.texts, batch.places.tolist(), strict=True):
            if text.strip():
                texts.append(text)
                places.append(place)
                characters += len(text)
            if characters > MOST_CHARACTERS:
                yield texts, places
                texts, places, characters = [], [], 0
        if texts:
            yield texts, places


def packed(documents: Sequence[Tokenised]) -> np.ndarray:
    """One after the other: uint32, shape [tokens]."""
    tokens = array("I")
    for document in documents:
        # The fastest way by far: four times as fast as numpy's own.
        tokens.fromlist(document.ids)
    return np.frombuffer(tokens, np.uint32)


def encoder(tokenizer: Any) -> Encode:
    """Token ids of texts, without special tokens.

    Asks the tokenizer's own library where transformers does nothing but that, and spares the offsets and masks.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and _adds_nothing(type(tokenizer)):
        # What a call without arguments sets.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        return lambda texts: [part.ids for part in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return lambda texts: tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _adds_nothing(kind: Any) -> bool:
    """Whether a class of tokenizers leaves a call to transformers' own class."""
    from transformers import PreTrainedTokenizerFast

    plain: Any = PreTrainedTokenizerFast
    return (kind.__call__, kind._encode_plus) == (plain.__call__, plain._encode_plus)


def end_of_text(tokenizer: Any) -> int:
    """The token that stands after every document.

    Raises:
        InputError: there is none.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the model's tokenizer has no end-of-text token to put between documents; choose another model"
        )
    return tokenizer.eos_token_id


def read_array(path: Path, kind: np.dtype) -> np.ndarray:
    """The tokens of a file, memory-mapped: shape [tokens]."""
    # An empty file cannot be mapped.
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)
