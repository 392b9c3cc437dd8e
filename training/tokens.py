"""Documents as one long row of tokens, made once, cached on disk and memory-mapped by every rank.

An end-of-text token stands after every document. Blocks of the sequence length are cut when they are read,
so the cache does not depend on it.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.documents import Corpus, Documents
from training.errors import InputError
from training.incarnation import force_to_disk
from training.manifest import file_sha256

CACHE = ".cache"
QUESTIONS = 64
FORMAT = 3
PARTS = ("train", "held_out")
# A network file system may show a new folder late to the hosts that did not make it.
VISIBLE_WITHIN_SECONDS = 30.0


@dataclass(frozen=True)
class Blocks:
    """A flat array of token ids, read in blocks.

    `blocks[i]` is int64 of shape [length]; the tokens left over after the last whole block are not used.
    """

    tokens: np.ndarray
    """Shape [tokens], an unsigned integer type."""
    length: int
    """Tokens per block: the sequence length."""

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[index * self.length : (index + 1) * self.length].astype(np.int64)


@dataclass(frozen=True)
class TokenisedCorpus:
    """A corpus as tokens, in memory or memory-mapped."""

    train: np.ndarray
    """Shape [tokens], as is `held_out`."""
    held_out: np.ndarray
    documents: int
    """Training documents that are not blank."""
    questions: list[tuple[str, str]]
    """Held-out prompts with the answers that the data gives to them."""


def token_folder(corpus: Corpus, tokenizer: Any, output_dir: Path) -> Path:
    """Where the tokens of this corpus by this tokenizer are cached."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    parts = [FORMAT, corpus.fingerprint, type(tokenizer).__name__, text, tokenizer.eos_token_id]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    return output_dir / CACHE / f"tokens-{key}"


def tokenise_corpus(corpus: Corpus, tokenizer: Any) -> TokenisedCorpus:
    """Both parts of a corpus as tokens.

    Raises:
        InputError: the tokenizer has no end-of-text token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError(
            "the model's tokenizer has no end-of-text token to put between documents; choose another model"
        )
    train, documents = tokenise(corpus.train, tokenizer, end)
    held_out, _ = tokenise(corpus.held_out, tokenizer, end)
    return TokenisedCorpus(train, held_out, documents, corpus.held_out.questions(QUESTIONS))


def read_tokens(folder: Path, say: Callable[[str], None] = print) -> TokenisedCorpus | None:
    """The cached tokens, memory-mapped; None where there are none, or where they are not as they were written.

    Every byte is read, which also brings the file into memory for what follows.

    Args:
        folder: the cache.
        say: told what is wrong with it.
    """
    if not folder.exists():
        return None
    fault = find_fault(folder)
    if fault is not None:
        say(f"the cache {folder} is damaged ({fault}): the data is read anew")
        return None
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    train, held_out = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS)
    return TokenisedCorpus(train, held_out, meta["documents"], read_questions(folder))


def find_fault(folder: Path) -> str | None:
    """What is wrong with a cache; None where every byte is as it was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta.pop("sha256") != _meta_sha256(meta):
            return "meta.json has another hash than when it was written"
        for part in PARTS:
            path, proof = folder / f"{part}.npy", meta["files"][f"{part}.npy"]
            if path.stat().st_size != proof["size"]:
                return f"{path.name} has {path.stat().st_size} bytes instead of {proof['size']}"
            if file_sha256(path) != proof["sha256"]:
                return f"{path.name} has another hash than when it was written"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"meta.json: {error}"
    return None


def _meta_sha256(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def read_questions(folder: Path) -> list[tuple[str, str]]:
    """Held-out prompts and answers of cached tokens."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return [(prompt, answer) for prompt, answer in meta["questions"]]


def store_tokens(folder: Path, corpus: TokenisedCorpus) -> None:
    """Cache the tokens: written aside and renamed, so that the folder is whole or not there.

    Raises:
        InputError: the folder cannot be written.
    """
    # Process numbers repeat from host to host.
    aside = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        meta: dict[str, Any] = {"documents": corpus.documents, "questions": corpus.questions, "files": {}}
        for part, tokens in zip(PARTS, (corpus.train, corpus.held_out), strict=True):
            path = aside / f"{part}.npy"
            np.save(path, tokens)
            force_to_disk(path)
            meta["files"][path.name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
        meta["sha256"] = _meta_sha256(meta)
        (aside / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        force_to_disk(aside / "meta.json")
        _put_in_place(aside, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; choose another --output-dir") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, folder: Path) -> None:
    """Rename, unless another run on the same data was faster: its tokens are the same."""
    gone = aside.with_name(f"{aside.name}.damaged")
    while True:
        try:
            os.rename(aside, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if find_fault(folder) is None:
            return
        # Between that look and this rename another run may have put a whole one there: then it goes back.
        with suppress(FileNotFoundError):
            os.rename(folder, gone)
            if find_fault(gone) is None:
                with suppress(OSError):
                    os.rename(gone, folder)
            shutil.rmtree(gone, ignore_errors=True)


def tokenise(documents: Documents, tokenizer: Any, end: int) -> tuple[np.ndarray, int]:
    """All documents as one array, each followed by `end`, and how many they are; 16 bits a token where the
    vocabulary allows."""
    kind = np.uint16 if max(len(tokenizer), end + 1) <= 2**16 else np.uint32
    parts: list[np.ndarray] = []
    for texts in documents.batches():
        # A thousand at a time is what keeps the tokenizer's threads busy.
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        parts += [np.asarray([*ids, end], dtype=kind) for ids in encoded]
    return (np.concatenate(parts) if parts else np.zeros(0, dtype=kind)), len(parts)


def open_blocks(folder: Path, name: str, length: int) -> Blocks:
    """The memory-mapped tokens of `train` or `held_out`.

    Raises:
        InputError: this host cannot see the folder that rank 0 wrote.
    """
    path, meta = folder / f"{name}.npy", folder / "meta.json"
    deadline = time.monotonic() + VISIBLE_WITHIN_SECONDS
    while not (path.exists() and meta.exists()):
        if time.monotonic() > deadline:
            raise InputError(
                f"{path} was written by rank 0 and is not there: every host must see the same --output-dir; put it on "
                f"a shared file system"
            )
        time.sleep(0.5)
    # Rank 0 has proved every byte; what another host sees of it is told by the size alone.
    size, wanted = path.stat().st_size, json.loads(meta.read_text(encoding="utf-8"))["files"][path.name]["size"]
    if size != wanted:
        raise InputError(
            f"{path} has {size} bytes here and {wanted} where rank 0 read it: this host sees another state of that "
            f"file system; try again, or delete {folder}"
        )
    return Blocks(np.load(path, mmap_mode="r"), length)


def check_enough(tokens: int, documents: int, length: int, ranks: int, batch_size: int, accumulation: int) -> None:
    """Refuse data that does not fill one optimizer step.

    Args:
        tokens: training tokens.
        documents: training documents.
        length: tokens per sequence.
        ranks: ranks, each of which takes `batch_size` sequences `accumulation` times in a step.
        batch_size: sequences per rank in one forward pass.
        accumulation: forward passes per step.

    Raises:
        InputError: with these figures.
    """
    needed = ranks * batch_size * accumulation
    if tokens // length < needed:
        raise InputError(
            f"too few rows: {documents} documents give {tokens} tokens, or {tokens // length} sequences of {length}, "
            f"but one step takes {needed} ({ranks} ranks × batch {batch_size} × accumulation {accumulation}); "
            f"lower --batch-size or --seq-length, or give more data"
        )
