"""Rows with named columns, read in order and in batches, so that data far larger than memory passes through.

A `.json` file that is one array is the exception: it is read whole.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from training.errors import InputError

BATCH = 1000
LONGEST_CSV_FIELD = 2**31 - 1  # csv's own limit of 131072 characters is shorter than many a document.
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
OTHERWISE = "give a local json, jsonl, csv, parquet or txt file or folder, or --dataset-name demo, which is built in"

Rows = Mapping[str, Sequence[Any]]
"""Some rows, by column."""


class Table(Protocol):
    """Rows with named columns."""

    @property
    def column_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def batches(self, columns: Sequence[str]) -> Iterator[Rows]:
        """These columns of all rows, in order, `BATCH` rows at a time at most."""
        ...


@dataclass(frozen=True)
class Columns:
    """A table held in memory, by column."""

    columns: Mapping[str, Sequence[Any]]

    @property
    def column_names(self) -> Sequence[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def batches(self, columns: Sequence[str]) -> Iterator[Rows]:
        for start in range(0, len(self), BATCH):
            yield {name: self.columns[name][start : start + BATCH] for name in columns}


@dataclass(frozen=True)
class ArrowTable:
    """A `datasets.Dataset`, whose columns are memory-mapped."""

    dataset: Any

    @property
    def column_names(self) -> Sequence[str]:
        return list(self.dataset.column_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, columns: Sequence[str]) -> Iterator[Rows]:
        chosen = self.dataset.select_columns(list(columns))
        for start in range(0, len(chosen), BATCH):
            yield chosen[start : start + BATCH]


@dataclass(frozen=True)
class FileTable:
    """A file, read anew at each pass."""

    path: Path
    column_names: Sequence[str]
    rows: int

    def __len__(self) -> int:
        return self.rows

    def batches(self, columns: Sequence[str]) -> Iterator[Rows]:
        rows = _rows_of(self.path)(self.path, columns)
        while batch := list(islice(rows, BATCH)):
            yield {name: [row.get(name) for row in batch] for name in columns}


@dataclass(frozen=True)
class Chain:
    """Tables one after the other, with the columns that all of them have."""

    tables: Sequence[Table]

    @property
    def column_names(self) -> Sequence[str]:
        first, *others = self.tables
        return [name for name in first.column_names if all(name in table.column_names for table in others)]

    def __len__(self) -> int:
        return sum(map(len, self.tables))

    def batches(self, columns: Sequence[str]) -> Iterator[Rows]:
        for table in self.tables:
            yield from table.batches(columns)


def file_table(path: Path) -> FileTable:
    """The table in a file, which is read once to know its columns and how many rows it has.

    Raises:
        InputError: it cannot be read as what its name says.
    """
    if path.suffix == ".parquet":
        with _reading(path):
            file = _parquet_file(path)
            return FileTable(path, file.schema_arrow.names, file.metadata.num_rows)
    columns: dict[str, None] = {}
    count = 0
    for row in _rows_of(path)(path, None):
        columns.update(dict.fromkeys(row))
        count += 1
    return FileTable(path, list(columns), count)


def _rows_of(path: Path) -> Callable[[Path, Sequence[str] | None], Iterator[Mapping[str, Any]]]:
    readers = {".parquet": _parquet_rows, ".csv": _csv_rows, ".json": _json_rows, ".jsonl": _json_rows}
    return readers.get(path.suffix, _paragraphs)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file becomes one line that names it."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"--dataset-name {path}: {error.strerror}; {OTHERWISE}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(
            f"--dataset-name {path}: cannot be read as {path.suffix or 'text'} ({error}); {OTHERWISE}"
        ) from error


def _json_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Mapping[str, Any]]:
    # Spreadsheets put a byte order mark in front.
    with _reading(path), path.open(encoding="utf-8-sig") as file:
        start = ""
        while (character := file.read(1)) and not start:
            start = character.strip()
        file.seek(0)
        rows: Iterable[Any]
        if start == "[":
            rows = json.load(file)
        else:
            # Lines of the file, not splitlines, which also splits at characters that JSON allows within a string.
            rows = (json.loads(line) for line in file if line.strip())
        for row in rows:
            if not isinstance(row, dict):
                raise InputError(f"--dataset-name {path}: every row must be an object with named columns; {OTHERWISE}")
            yield row


def _csv_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(LONGEST_CSV_FIELD)
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _paragraphs(path: Path, columns: Sequence[str] | None) -> Iterator[Mapping[str, Any]]:
    """A blank line ends a document: lines alone are too short, and the whole file leaves nothing to hold out."""
    with _reading(path), path.open(encoding="utf-8-sig") as file:
        lines: list[str] = []
        for line in file:
            if line != "\n":
                lines.append(line)
            elif lines:
                yield from _paragraph(lines)
                lines = []
        yield from _paragraph(lines)


def _paragraph(lines: list[str]) -> Iterator[Mapping[str, Any]]:
    text = "".join(lines).strip("\n")
    if text.strip():
        yield {"text": text}


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Mapping[str, Any]]:
    with _reading(path):
        for batch in _parquet_file(path).iter_batches(BATCH, columns=columns and list(columns)):
            yield from batch.to_pylist()


def _parquet_file(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise InputError(f"--dataset-name {path}: reading parquet needs pyarrow: pip install datasets") from error
    try:
        return parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(str(error).splitlines()[0]) from error
