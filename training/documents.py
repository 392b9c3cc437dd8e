"""Where the text comes from: a dataset's name or path becomes training and held-out documents.

Only rank 0 calls this. `datasets` is imported where a hub name, a saved dataset or --streaming needs it and nowhere
else.
"""

import hashlib
import json
import os
import random
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.config import TrainConfig
from training.demo import DEMO, demo_rows
from training.errors import InputError, first_line
from training.hub import ask_hub
from training.manifest import file_sha256
from training.prompt import TextRule, text_rule
from training.tables import BATCH, OTHERWISE, SUFFIXES, ArrowTable, Chain, Columns, Rows, Table, file_table

HELD_OUT_SPLITS = ("validation", "valid", "val", "dev", "eval", "test")
SPLIT_SEED = 0  # Not the run's seed: evaluations of runs with different seeds stay comparable.
NOT_HELD_OUT = -1
"""The place of a document that is not held out."""


@dataclass(frozen=True)
class Batch:
    """Some documents, in the data's order."""

    texts: Sequence[str]
    """Blank ones too."""
    places: np.ndarray
    """Shape [texts], int64: the place among the held-out documents, or `NOT_HELD_OUT`."""


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents, with a fingerprint of everything they depend on."""

    train: Table
    held_out: Table | None
    """The dataset's own."""
    rule: TextRule
    fingerprint: str
    held_out_percentage: float = 0.0
    """Share of `train` that is held out, where the dataset has nothing of its own."""
    most_tokens: int | None = None
    """Training tokens at most, all where None."""

    @property
    def most_held_out(self) -> int | None:
        """Tokens of the dataset's own held-out documents at most, all where None."""
        return None

    def batches(self) -> Iterator[Batch]:
        """Every document of `train` once."""
        share = self.held_out_percentage if self.held_out is None else 0.0
        return self._texts(self.train, split_places(len(self.train), share))

    def own_held_out(self) -> Iterator[Batch]:
        """Every document of `held_out` once."""
        held_out = self.held_out if self.held_out is not None else Columns({})
        return self._texts(held_out, np.arange(len(held_out)))

    def _texts(self, table: Table, places: np.ndarray) -> Iterator[Batch]:
        start = 0
        for rows in table.batches(self.rule.columns):
            texts = self.rule.texts(rows)
            start += len(texts)
            if start > len(places):
                break
            yield Batch(texts, places[start - len(texts) : start])
        if start != len(places):
            raise InputError("the dataset was changed while it was read; run the same command again")


@dataclass(frozen=True)
class StreamedCorpus:
    """Documents of a dataset that comes piece by piece, and whose length nobody knows."""

    name: str
    train: Any
    """An iterable dataset of the library `datasets`, as is `held_out`."""
    held_out: Any | None
    rule: TextRule
    fingerprint: str
    held_out_percentage: float
    most_tokens: int

    @property
    def most_held_out(self) -> int:
        """Tokens of the dataset's own held-out documents at most: the share of the training tokens."""
        return int(self.most_tokens * self.held_out_percentage / 100)

    def batches(self) -> Iterator[Batch]:
        """The documents of `train`, a share of each thousand held out where the dataset has nothing of its own."""
        share = self.held_out_percentage if self.held_out is None else 0.0
        seen = held = 0
        for number, rows in enumerate(self._read(self.train)):
            texts = self.rule.texts(rows)
            places = np.full(len(texts), NOT_HELD_OUT)
            count = held_out_count(seen + len(texts), share) - held
            chosen = np.random.default_rng((SPLIT_SEED, number)).choice(len(texts), count, replace=False)
            places[np.sort(chosen)] = held + np.arange(count)
            seen, held = seen + len(texts), held + count
            yield Batch(texts, places)

    def own_held_out(self) -> Iterator[Batch]:
        """The documents of `held_out`."""
        start = 0
        for rows in self._read(self.held_out) if self.held_out is not None and self.most_held_out else ():
            texts = self.rule.texts(rows)
            yield Batch(texts, start + np.arange(len(texts)))
            start += len(texts)

    def _read(self, dataset: Any) -> Iterator[Rows]:
        with _streaming(self.name):
            yield from dataset.select_columns(list(self.rule.columns)).iter(batch_size=BATCH)


def split_places(rows: int, percentage: float) -> np.ndarray:
    """A seeded share of so many rows as held out, in a random order: shape [rows], int64, as `Batch.places`."""
    order = array("q", range(rows))  # Eight bytes a row, where a list takes 36.
    if count := held_out_count(rows, percentage):
        random.Random(SPLIT_SEED).shuffle(order)
    places = np.full(rows, NOT_HELD_OUT)
    places[np.frombuffer(order, np.int64)[:count]] = np.arange(count)
    return places


def held_out_count(rows: int, percentage: float) -> int:
    """How many of so many rows are held out: at least one where any share is asked, and never all."""
    return min(rows - 1, max(1, round(rows * percentage / 100))) if percentage else 0


def load_corpus(config: TrainConfig) -> Corpus | StreamedCorpus:
    """The documents of the dataset that a request names; a change of its share or its most tokens is another corpus.

    Held out is the dataset's own validation or test split; where it has none, a seeded share of the
    documents, and at least one document where any share is asked.

    Raises:
        InputError: no such dataset, it cannot be read, or it has no column of text.
    """
    name, streaming, most_tokens = config.dataset_name, config.streaming, config.max_train_tokens
    held_out_percentage = config.validation_split_percentage
    load = _stream if streaming else _load
    train, held_out, source = load(name, config.dataset_subset)
    if not streaming and len(train) == 0:
        raise InputError(f"--dataset-name {name}: there are no rows in it; {OTHERWISE}")
    columns = _column_names(train, name) if streaming else train.column_names
    rule = text_rule(columns, config.text_column)
    key = [source, rule.column, rule.has_input, held_out_percentage, SPLIT_SEED]
    key += [most_tokens] if most_tokens is not None else []
    fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    if streaming:
        assert most_tokens is not None
        return StreamedCorpus(name, train, held_out, rule, fingerprint, held_out_percentage, most_tokens)
    own = held_out is not None and len(held_out) > 0 and set(train.column_names) <= set(held_out.column_names)
    return Corpus(train, held_out if own else None, rule, fingerprint, held_out_percentage, most_tokens)


def load_split(config: TrainConfig, split: str) -> Corpus:
    """The documents of one split of the dataset, all of them as training documents.

    Raises:
        InputError: there is no split of that name.
    """
    name = config.dataset_name
    table: Table
    if is_hub_name(name) or is_saved_dataset(Path(name)):
        datasets = import_datasets(name)
        with _refused(f"--split {split}: --dataset-name {name} has none of that name", "give another"):
            if is_hub_name(name):
                loaded = datasets.load_dataset(name, config.dataset_subset, split=split)
            else:
                saved = datasets.load_from_disk(name)
                there = list(saved) if isinstance(saved, Mapping) else []
                if split not in there:
                    raise ValueError(f"there are {', '.join(there) or 'no splits'}")
                loaded = saved[split]
        table, source = ArrowTable(loaded), str(loaded._fingerprint)
    else:
        files = [] if is_demo(name) else [file for file in data_files(name) if split.lower() in _words(file.stem)]
        if not files:
            raise InputError(
                f"--split {split}: no file of --dataset-name {name} has that word in its name; give held_out or train, "
                f"or the file itself as --dataset-name"
            )
        table, source = Chain([file_table(file) for file in files]), " ".join(map(_named_digest, files))
    rule = text_rule(table.column_names, config.text_column)
    key = ["split", source, rule.column, rule.has_input]
    return Corpus(table, None, rule, hashlib.sha256(json.dumps(key).encode()).hexdigest())


def _words(stem: str) -> list[str]:
    return re.findall(r"[^\W_]+", stem.lower())


def _load(name: str, subset: str | None) -> tuple[Table, Table | None, str]:
    """Training table, held-out table if the dataset has its own, and what identifies the content."""
    path = Path(name)
    if is_hub_name(name):
        return _hub_dataset(name, subset)
    if is_demo(name):
        rows = demo_rows()
        return Columns(dict(rows)), None, hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    if is_saved_dataset(path):
        return _saved_dataset(path)
    return _data_files(data_files(name))


def is_demo(name: str) -> bool:
    """Whether the built-in data is meant."""
    return name == DEMO and not Path(name).exists()


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def is_hub_name(name: str) -> bool:
    """Whether a dataset's name can only be meant for the hub: neither the demo nor anything that looks like
    a path."""
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in SUFFIXES
    return not (name == DEMO or looks_like_a_path or Path(name).exists())


def data_files(name: str) -> list[Path]:
    """The files of a path: itself, or those in the folder that can be read.

    Raises:
        InputError: there are none.
    """
    path = Path(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"--dataset-name {name}: no such file or folder; {OTHERWISE}")
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise InputError(f"--dataset-name {name}: no {', '.join(SUFFIXES)} file in that folder; {OTHERWISE}")
    return files


def _data_files(files: list[Path]) -> tuple[Table, Table | None, str]:
    train_files, held_out_files = _by_split(files)
    # The threads hash while this one reads.
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_named_digest, files)
        train = Chain([file_table(file) for file in train_files])
        held_out = Chain([file_table(file) for file in held_out_files]) if held_out_files else None
        return train, held_out, " ".join(digests)


def _by_split(files: list[Path]) -> tuple[list[Path], list[Path]]:
    if len(files) == 1:
        return files, []
    held_out = [file for file in files if is_held_out_file(file.stem)]
    train = [file for file in files if file not in held_out]
    if not train:
        folder = files[0].parent
        raise InputError(f"--dataset-name {folder}: only validation and test files are there; add one to train on")
    return train, held_out


def _named_digest(file: Path) -> str:
    try:
        return f"{file.name} {file_sha256(file)}"
    except OSError as error:
        raise InputError(f"--dataset-name {file}: {error.strerror}; {OTHERWISE}") from error


def is_held_out_file(stem: str) -> bool:
    """Whether a file's name has a held-out split among its words, and not `train`: `test-1`, but not `latest`."""
    words = set(re.findall(r"[^\W\d_]+", stem.lower()))
    return "train" not in words and not words.isdisjoint(HELD_OUT_SPLITS)


def _saved_dataset(path: Path) -> tuple[Table, Table | None, str]:
    datasets = import_datasets(str(path))
    with _refused(f"--dataset-name {path}: not a saved dataset"):
        return _tables(datasets.load_from_disk(str(path)), str(path))


def _hub_dataset(name: str, subset: str | None) -> tuple[Table, Table | None, str]:
    reachable = hub_revision(name) is not None
    if not reachable:
        # Without this `datasets` tries again for 23 seconds before it looks into its cache.
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets = import_datasets(name)
    problem = "cannot be loaded" if reachable else "the hub cannot be reached, and it is not in the local cache"
    with _refused(f"--dataset-name {name}: {problem}"):
        return _tables(datasets.load_dataset(name, subset), name)


def _stream(name: str, subset: str | None) -> tuple[Any, Any | None, str]:
    """The same as `_load`, as iterable datasets."""
    if is_demo(name) or (not is_hub_name(name) and is_saved_dataset(Path(name))):
        raise InputError(f"--dataset-name {name} is on this machine as it is: leave out --streaming")
    datasets = import_datasets(name)
    with _refused(f"--dataset-name {name}: cannot be streamed"):
        if is_hub_name(name):
            revision = hub_revision(name)
            if revision is None:
                raise InputError(
                    f"--dataset-name {name}: the hub cannot be reached, and --streaming reads from there; run "
                    f"`python -m training.prepare` with the same options where it can, or {OTHERWISE}"
                )
            loaded = datasets.load_dataset(name, subset, revision=revision, streaming=True)
            source = f"stream {name} {subset} {revision}"
        else:
            files = data_files(name)
            train_files, held_out_files = _by_split(files)
            splits = {"train": train_files, **({"validation": held_out_files} if held_out_files else {})}
            builder = _stream_builder(name, files)
            paths = {split: [str(file) for file in part] for split, part in splits.items()}
            loaded = datasets.load_dataset(builder, data_files=paths, streaming=True)
            with ThreadPoolExecutor() as pool:
                source = "stream " + " ".join(pool.map(_named_digest, files))
    train, held_out = _splits(loaded, name)
    return train, held_out, source


def _stream_builder(name: str, files: list[Path]) -> str:
    """What `datasets` reads these files by. Its readers of text and csv make other documents than `training.tables`."""
    builders = {{".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(file.suffix) for file in files}
    builder = builders.pop()
    if builders or builder is None:
        kinds = ", ".join(sorted({file.suffix or "without a suffix" for file in files}))
        raise InputError(
            f"--dataset-name {name}: --streaming reads json or parquet files of one kind on this machine, and these "
            f"are {kinds}; leave out --streaming: --max-train-tokens does without it"
        )
    return builder


@contextmanager
def _refused(what: str, way_out: str = OTHERWISE) -> Iterator[None]:
    """What the library `datasets` finds wrong becomes one line that begins so."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{what} ({first_line(error)}); {way_out}") from error


def _streaming(name: str) -> AbstractContextManager[None]:
    way_out = "run the same command again, or give another dataset"
    return _refused(f"the stream of --dataset-name {name} broke off", way_out)


def _column_names(dataset: Any, name: str) -> list[str]:
    if dataset.column_names is not None:
        return list(dataset.column_names)
    # A stream without a description knows them only once it has begun.
    with _streaming(name):
        first = next(iter(dataset), None)
    if first is None:
        raise InputError(f"--dataset-name {name}: there are no rows in it; {OTHERWISE}")
    return list(first)


def hub_revision(name: str) -> str | None:
    """The newest commit of a dataset on the hub, None where the hub cannot be reached; asks once, without waiting
    long.

    Raises:
        InputError: the hub answers, and has no such dataset or keeps it from this user.
    """
    info = ask_hub("dataset", name, OTHERWISE)
    return None if info is None else info.sha or "main"


def _tables(loaded: Any, name: str) -> tuple[Table, Table | None, str]:
    train, held_out = _splits(loaded, name)
    source = train._fingerprint + (held_out._fingerprint if held_out is not None else "")
    return ArrowTable(train), ArrowTable(held_out) if held_out is not None else None, source


def _splits(loaded: Any, name: str) -> tuple[Any, Any | None]:
    if not isinstance(loaded, Mapping):
        return loaded, None
    train = loaded.get("train")
    if train is None:
        raise InputError(f"--dataset-name {name}: it has the splits {', '.join(loaded)} and no `train`; {OTHERWISE}")
    return train, next((loaded[split] for split in HELD_OUT_SPLITS if split in loaded), None)


def import_datasets(name: str) -> Any:
    """The library `datasets`, quiet.

    Raises:
        InputError: it is not installed, and the dataset of this name needs it.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"--dataset-name {name}: the package `datasets` is not installed: pip install datasets, or give a local "
            f"json, jsonl, csv or txt file"
        ) from error
    datasets.disable_progress_bars()
    return datasets
