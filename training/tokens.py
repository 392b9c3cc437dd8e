"""The tokens of a corpus, made once, cached on disk and memory-mapped by every rank.

Blocks of the sequence length are cut when they are read, so the cache does not depend on it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.documents import Corpus, StreamedCorpus
from training.errors import InputError
from training.proof import identity, wrong_file
from training.tokenise import read_array, write_tokens
from training.whole_file import force_to_disk, write_whole

CACHE = ".cache"
FORMAT = 4
TRAIN, HELD_OUT = PARTS = ("train", "held_out")
META = "meta.json"
PROVED = "proved.json"
# A network file system may show a new folder late to the hosts that did not make it.
VISIBLE_WITHIN_SECONDS = 30.0


class UnwritableError(InputError):
    """The cache of tokens cannot be written where it was asked for."""


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

    def take(self, indices: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        """These blocks in one copy: shape [indices, length], of the tokens' type; into `out` where it is given."""
        whole = np.asarray(self.tokens)[: len(self) * self.length].reshape(len(self), self.length)
        # With the default mode numpy would gather into a buffer of its own first.
        return whole.take(indices, 0, out, "raise" if out is None else "clip")


@dataclass(frozen=True)
class TokenisedCorpus:
    """A corpus as tokens, memory-mapped."""

    train: np.ndarray
    """Shape [tokens], as is `held_out`."""
    held_out: np.ndarray
    documents: int
    """Training documents that are not blank."""


def token_folder(fingerprint: str, tokenizer: Any, output_dir: Path) -> Path:
    """Where the tokens of a corpus of this fingerprint, by this tokenizer, are cached."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    parts = [FORMAT, fingerprint, type(tokenizer).__name__, text, len(tokenizer), tokenizer.eos_token_id]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    return output_dir / CACHE / f"tokens-{key}"


def read_tokens(folder: Path, say: Callable[[str], None] = print, whole: bool = False) -> TokenisedCorpus | None:
    """The cached tokens; None where there are none, or where they are not as they were written.

    Args:
        folder: the cache.
        say: told what is wrong with it.
        whole: compare every byte, also where nothing has written to the files since that was done.
    """
    if not folder.exists():
        return None
    fault = find_fault(folder, whole)
    if fault is not None:
        say(f"the cache {folder} is damaged ({fault}): the data is read anew")
        return None
    return open_tokens(folder)


def open_tokens(folder: Path) -> TokenisedCorpus:
    """The tokens of a folder, as they are."""
    meta = read_meta(folder)
    train, held_out = (read_array(folder / f"{part}.bin", np.dtype(meta["kind"])) for part in PARTS)
    return TokenisedCorpus(train, held_out, meta["documents"])


def find_fault(folder: Path, whole: bool = True) -> str | None:
    """What is wrong with a cache; None where it is as it was written, as far as `training.proof` looks."""
    try:
        meta = read_meta(folder)
        if meta.pop("sha256") != _meta_sha256(meta):
            return f"{META} has another hash than when it was written"
        files = meta["files"]
        for name, proof in files.items():
            size = (folder / name).stat().st_size
            if size != proof["size"]:
                return f"{name} has {size} bytes instead of {proof['size']}"
        now = {name: identity(folder / name) for name in files}
        known = now == _proved(folder)
        hashes = {name: proof["chunks"] for name, proof in files.items()}
        if name := wrong_file(folder, hashes, whole=whole or not known):
            return f"{name} has another hash than when it was written"
        if not known and now == {name: identity(folder / name) for name in files}:
            # In a cache of somebody else it cannot be written, and the next start compares every byte again.
            with suppress(OSError):
                write_whole(folder / PROVED, json.dumps(now))
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{META}: {error}"
    return None


def _proved(folder: Path) -> dict[str, list[int]] | None:
    """The identity of each file when it was last proved; None where that is not known."""
    try:
        return json.loads((folder / PROVED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _meta_sha256(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def read_meta(folder: Path) -> dict[str, Any]:
    """What a cache says about itself."""
    return json.loads((folder / META).read_text(encoding="utf-8"))


def read_questions(folder: Path) -> list[tuple[str, str]]:
    """Held-out prompts and answers of cached tokens."""
    return [(prompt, answer) for prompt, answer in read_meta(folder)["questions"]]


def stage_tokens(folder: Path, corpus: Corpus | StreamedCorpus, tokenizer: Any) -> Path:
    """Tokenise a corpus into a folder aside; `publish_tokens` puts it in place, `discard_tokens` takes it away.

    Raises:
        InputError: the tokenizer has no end-of-text token.
        UnwritableError: the folder cannot be written.
    """
    # Process numbers repeat from host to host.
    aside = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}")
    made = missing_above(folder)
    try:
        _drop_abandoned(folder)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        train, held_out = (aside / f"{part}.bin" for part in PARTS)
        written = write_tokens(corpus, tokenizer, train, held_out)
        proofs = {
            name: {"size": (aside / name).stat().st_size, "chunks": chunks} for name, chunks in written.hashes.items()
        }
        meta = {
            "kind": written.kind,
            "documents": written.documents,
            "questions": written.questions,
            "files": proofs,
        }
        meta["sha256"] = _meta_sha256(meta)
        (aside / META).write_text(json.dumps(meta), encoding="utf-8")
        force_to_disk(aside / META)
        write_whole(aside / PROVED, json.dumps({name: identity(aside / name) for name in written.hashes}))
    except OSError as error:
        discard_tokens(aside, made)
        raise UnwritableError(f"{folder} cannot be written: {error.strerror}; choose another --output-dir") from error
    except BaseException:
        discard_tokens(aside, made)
        raise
    return aside


def missing_above(folder: Path) -> list[Path]:
    """Of the cache and the output directory above these tokens, the deepest first, what is not there yet."""
    return [above for above in (folder.parent, folder.parent.parent) if not os.path.exists(above)]


def discard_tokens(aside: Path, made: Sequence[Path]) -> None:
    """Take away what was made aside, and of the folders above it those that were made for it, where nothing else is in
    them."""
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        for above in made:
            above.rmdir()


def _drop_abandoned(folder: Path) -> None:
    """Remove what processes of this host left aside when they were killed."""
    for aside in folder.parent.glob(f"{folder.name}.*"):
        left = re.fullmatch(re.escape(f"{folder.name}.{socket.gethostname()}.") + r"(\d+)(\.damaged)?", aside.name)
        if left and not Path("/proc", left[1]).exists():
            shutil.rmtree(aside, ignore_errors=True)


def publish_tokens(aside: Path, folder: Path) -> None:
    """Rename, so that the folder is whole or not there; unless another run on the same data was faster: its tokens are
    the same.

    Raises:
        UnwritableError: the folder cannot be written.
    """
    try:
        _put_in_place(aside, folder)
    except OSError as error:
        raise UnwritableError(f"{folder} cannot be written: {error.strerror}; choose another --output-dir") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, folder: Path) -> None:
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


def open_blocks(folder: Path, name: str, length: int) -> Blocks:
    """The memory-mapped tokens of `train` or `held_out`.

    Raises:
        InputError: this host cannot see the folder that rank 0 wrote.
    """
    path, meta_path = folder / f"{name}.bin", folder / META
    deadline = time.monotonic() + VISIBLE_WITHIN_SECONDS
    while not (path.exists() and meta_path.exists()):
        if time.monotonic() > deadline:
            raise InputError(
                f"{path} was written by rank 0 and is not there: every host must see the same --output-dir; put it on "
                f"a shared file system"
            )
        time.sleep(0.5)
    # Rank 0 has proved it; what another host sees of it is told by the size alone.
    meta = read_meta(folder)
    size, wanted = path.stat().st_size, meta["files"][path.name]["size"]
    if size != wanted:
        raise InputError(
            f"{path} has {size} bytes here and {wanted} where rank 0 read it: this host sees another state of that "
            f"file system; try again, or delete {folder}"
        )
    return Blocks(read_array(path, np.dtype(meta["kind"])), length)


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
