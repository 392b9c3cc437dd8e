"""What a dataset's name stands for, known without reading it, so that a second start finds its tokens at once.

A cache of tokens is named by the data's content. To know the content all of it must be read; so what was once read
is remembered here: this request, with the source in this state, has that fingerprint. The state of files is inode,
size and times, that of a hub dataset its commit.
"""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from training.config import TrainConfig
from training.demo import demo_rows
from training.documents import data_files, hub_revision, is_demo, is_hub_name, is_saved_dataset
from training.errors import InputError
from training.proof import identity
from training.whole_file import write_whole

FORMAT = 1
FOLDER = "sources"
SETTLED_SECONDS = 2.0
"""A file that was written to this short a time ago may be written to again within one tick of its file system's
clock, and look the same."""


def source_state(name: str) -> list[Any] | None:
    """What changes when the data of this name does; None where that cannot be known now.

    Raises:
        InputError: there is no such dataset.
    """
    if is_hub_name(name):
        revision = hub_revision(name)
        return None if revision is None else [revision]
    if is_demo(name):
        return [hashlib.sha256(json.dumps(demo_rows()).encode()).hexdigest()]
    path = Path(name)
    files = sorted(path.rglob("*")) if is_saved_dataset(path) else data_files(name)
    try:
        return [[str(file.relative_to(path)), *identity(file)] for file in files if file.is_file()]
    except OSError as error:
        raise InputError(f"--dataset-name {name}: {error.strerror}; make it readable, or give another") from error


def remembered_fingerprint(cache: Path, config: TrainConfig, state: list[Any] | None) -> str | None:
    """The fingerprint of the corpus, where it was read in this state before; None where it must be read.

    Args:
        cache: the folder of caches.
        config: the request.
        state: of the source. A hub that cannot be reached has none: then the newest that was read is meant, as it is
            for the cache of `datasets`.
    """
    try:
        entry = json.loads(_entry(cache, config).read_text(encoding="utf-8"))
        known = entry["state"] == state or (state is None and is_hub_name(config.dataset_name))
        return str(entry["fingerprint"]) if known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_fingerprint(cache: Path, config: TrainConfig, state: list[Any] | None, fingerprint: str) -> None:
    """Remember it, unless the files are too new to be told apart from what may still be written to them."""
    if state is None or is_fresh(state, time.time()):
        return
    entry = _entry(cache, config)
    # In a cache of somebody else it cannot be written, and the next start reads the data again.
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_whole(entry, json.dumps({"state": state, "fingerprint": fingerprint}))


def is_fresh(state: list[Any], now: float) -> bool:
    """Whether a file of this state was changed in the last `SETTLED_SECONDS`."""
    times = [stamp for file in state if isinstance(file, list) for stamp in file[-2:]]
    return max(times, default=0) > (now - SETTLED_SECONDS) * 1e9


def _entry(cache: Path, config: TrainConfig) -> Path:
    name = config.dataset_name
    request = [
        FORMAT,
        name if is_hub_name(name) or is_demo(name) else str(Path(name).resolve()),
        config.dataset_subset,
        config.text_column,
        config.validation_split_percentage,
        config.streaming,
        config.max_train_tokens,
    ]
    return cache / FOLDER / (hashlib.sha256(json.dumps(request).encode()).hexdigest()[:24] + ".json")
