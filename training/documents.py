"""Where the text comes from: a dataset's name or path becomes training and held-out documents.

Only rank 0 calls this. `datasets` is imported where a hub name or a saved dataset needs it and nowhere else.
"""

import csv
import hashlib
import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from training.demo import DEMO, demo_rows
from training.errors import InputError
from training.prompt import TextRule, text_rule

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
HELD_OUT_SPLITS = ("validation", "valid", "val", "dev", "eval", "test")
SPLIT_SEED = 0  # Not the run's seed: evaluations of runs with different seeds stay comparable.
BATCH = 1000
LONGEST_CSV_FIELD = 2**31 - 1  # csv's own limit of 131072 characters is shorter than many a document.
OTHERWISE = "give a local json, jsonl, csv, parquet or txt file or folder, or --dataset-name demo, which is built in"


class Table(Protocol):
    """Rows with named columns; `datasets.Dataset` is one."""

    @property
    def column_names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]: ...


@dataclass(frozen=True)
class Columns:
    """A table held in memory, by column."""

    columns: dict[str, list[Any]]

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def __getitem__(self, rows: list[int]) -> dict[str, list[Any]]:
        return {name: [values[row] for row in rows] for name, values in self.columns.items()}


@dataclass(frozen=True)
class Documents:
    """Some rows of a table, as texts."""

    table: Table
    rows: Sequence[int]
    rule: TextRule

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self) -> Iterator[list[str]]:
        """All texts that are not blank, of 1000 rows at a time."""
        for start in range(0, len(self.rows), BATCH):
            texts = self.rule.texts(self.table[list(self.rows[start : start + BATCH])])
            yield [text for text in texts if text.strip()]

    def questions(self, count: int) -> list[tuple[str, str]]:
        """The prompts of the first `count` rows that are not blank, with the answers that the data gives to them."""
        questions = self.rule.questions(self.table[list(self.rows[:count])])
        return [(prompt, answer) for prompt, answer in questions if (prompt + answer).strip()]


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents, with a fingerprint of everything they depend on."""

    train: Documents
    held_out: Documents
    fingerprint: str


def load_corpus(name: str, subset: str | None, text_column: str | None, held_out_percentage: float) -> Corpus:
    """The documents of a dataset.

    Held out is the dataset's own validation or test split; where it has none, a seeded share of the
    documents, and at least one document where any share is asked.

    Raises:
        InputError: no such dataset, it cannot be read, or it has no column of text.
    """
    train, held_out, source = _load(name, subset)
    if len(train) == 0:
        raise InputError(f"--dataset-name {name}: there are no rows in it; {OTHERWISE}")
    rule = text_rule(train.column_names, text_column)
    key = [source, rule.column, rule.has_input, held_out_percentage, SPLIT_SEED]
    fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    if held_out is not None and len(held_out) > 0 and set(train.column_names) <= set(held_out.column_names):
        return Corpus(
            Documents(train, range(len(train)), rule),
            Documents(held_out, range(len(held_out)), rule),
            fingerprint,
        )
    rows = list(range(len(train)))
    random.Random(SPLIT_SEED).shuffle(rows)
    cut = min(len(rows) - 1, max(1, round(len(rows) * held_out_percentage / 100))) if held_out_percentage else 0
    return Corpus(Documents(train, sorted(rows[cut:]), rule), Documents(train, rows[:cut], rule), fingerprint)


def _load(name: str, subset: str | None) -> tuple[Table, Table | None, str]:
    """Training table, held-out table if the dataset has its own, and what identifies the content."""
    path = Path(name)
    if is_hub_name(name):
        return _hub_dataset(name, subset)
    if name == DEMO and not path.exists():
        rows = demo_rows()
        return Columns(dict(rows)), None, _digest(json.dumps(rows).encode())
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _saved_dataset(path)
        return _data_files(sorted(file for file in path.iterdir() if file.suffix in SUFFIXES), name)
    if path.is_file():
        return _data_files([path], name)
    raise InputError(f"--dataset-name {name}: no such file or folder; {OTHERWISE}")


def is_hub_name(name: str) -> bool:
    """Whether a dataset's name can only be meant for the hub: neither the demo nor anything that looks like
    a path."""
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in SUFFIXES
    return not (name == DEMO or looks_like_a_path or Path(name).exists())


def _data_files(files: list[Path], name: str) -> tuple[Table, Table | None, str]:
    if not files:
        raise InputError(f"--dataset-name {name}: no {', '.join(SUFFIXES)} file in that folder; {OTHERWISE}")
    held_out_files = [file for file in files if is_held_out_file(file.stem)]
    train_files = [file for file in files if file not in held_out_files] if len(files) > 1 else files
    if not train_files:
        raise InputError(f"--dataset-name {name}: only validation and test files are there; add one to train on")
    held_out = _concatenate(held_out_files) if len(files) > 1 and held_out_files else None
    digests = [f"{file.name} {_digest(file.read_bytes())}" for file in files]
    return _concatenate(train_files), held_out, " ".join(digests)


def is_held_out_file(stem: str) -> bool:
    """Whether a file's name has a held-out split among its words, and not `train`: `test-1`, but not `latest`."""
    words = set(re.findall(r"[^\W\d_]+", stem.lower()))
    return "train" not in words and not words.isdisjoint(HELD_OUT_SPLITS)


def _concatenate(files: list[Path]) -> Columns:
    tables = [_read_file(file) for file in files]
    shared = [column for column in tables[0] if all(column in table for table in tables)]
    return Columns({column: [value for table in tables for value in table[column]] for column in shared})


def _read_file(path: Path) -> dict[str, list[Any]]:
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        # Spreadsheets put a byte order mark in front.
        if path.suffix == ".csv":
            csv.field_size_limit(LONGEST_CSV_FIELD)
            with path.open(encoding="utf-8-sig", newline="") as file:
                return _by_column(list(csv.DictReader(file)), path)
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".json", ".jsonl"):
            return _by_column(_json_rows(text), path)
        # A blank line ends a document: lines alone are too short, and the whole file leaves nothing to hold
        # out.
        return {"text": [part.strip("\n") for part in text.split("\n\n") if part.strip()]}
    except OSError as error:
        raise InputError(f"--dataset-name {path}: {error.strerror}; {OTHERWISE}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(
            f"--dataset-name {path}: cannot be read as {path.suffix or 'text'} ({error}); {OTHERWISE}"
        ) from error


def _json_rows(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        rows = json.loads(text)
        return rows if isinstance(rows, list) else [rows]
    # Not splitlines, which also splits at characters that JSON allows within a string, such as U+2028.
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _by_column(rows: list[Any], path: Path) -> dict[str, list[Any]]:
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"--dataset-name {path}: every row must be an object with named columns; {OTHERWISE}")
    columns = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in columns}


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise InputError(f"--dataset-name {path}: reading parquet needs pyarrow: pip install datasets") from error
    try:
        return parquet.read_table(path).to_pydict()
    except ArrowInvalid as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _saved_dataset(path: Path) -> tuple[Table, Table | None, str]:
    datasets = _import_datasets(str(path))
    try:
        return _splits(datasets.load_from_disk(str(path)), str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"--dataset-name {path}: not a saved dataset ({_first_line(error)}); {OTHERWISE}") from error


def _hub_dataset(name: str, subset: str | None) -> tuple[Table, Table | None, str]:
    reachable = check_hub_dataset(name)
    if not reachable:
        # Without this `datasets` tries again for 23 seconds before it looks into its cache.
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets = _import_datasets(name)
    try:
        return _splits(datasets.load_dataset(name, subset), name)
    except (OSError, ValueError) as error:
        problem = "cannot be loaded" if reachable else "the hub cannot be reached, and it is not in the local cache"
        raise InputError(f"--dataset-name {name}: {problem} ({_first_line(error)}); {OTHERWISE}") from error


def check_hub_dataset(name: str) -> bool:
    """Whether the hub can be reached and has this dataset; asks once, without waiting long.

    Raises:
        InputError: the hub answers, and has no such dataset or keeps it from this user.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=10)
    except HFValidationError as error:
        raise InputError(f"--dataset-name {name}: no such file, and no name of a hub dataset; {OTHERWISE}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"--dataset-name {name}: the hub has no such dataset, or it is private and no token is set (HF_TOKEN); "
            f"{OTHERWISE}"
        ) from error
    except Exception:
        # Offline mode, no route, a proxy's refusal, a time-out: as many classes as there are HTTP libraries.
        return False
    return True


def _splits(loaded: Any, name: str) -> tuple[Table, Table | None, str]:
    if not isinstance(loaded, dict):
        return loaded, None, loaded._fingerprint
    train = loaded.get("train")
    if train is None:
        raise InputError(f"--dataset-name {name}: it has the splits {', '.join(loaded)} and no `train`; {OTHERWISE}")
    held_out = next((loaded[split] for split in HELD_OUT_SPLITS if split in loaded), None)
    return train, held_out, train._fingerprint + (held_out._fingerprint if held_out is not None else "")


def _import_datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"--dataset-name {name}: the package `datasets` is not installed: pip install datasets, or give a local "
            f"json, jsonl, csv or txt file"
        ) from error
    datasets.disable_progress_bars()
    return datasets


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
