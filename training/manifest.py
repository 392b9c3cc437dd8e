"""What a checkpoint is: a folder `step-00000008`, its files, and `manifest.json`, the proof of every byte of it, its
own included.

The hashes are needed because nothing else looks: `torch.load` and `safetensors` accept a flipped bit without a
word."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.errors import InputError

FORMAT = 2
MANIFEST = "manifest.json"
WEIGHTS, OPTIMIZER, RNG = "model.safetensors", "optimizer.safetensors", "rng.pt"
"""The other files of a checkpoint, but for what `from_pretrained` wants besides."""
STEP_FOLDER = re.compile(r"step-(\d{8,})")
OWN_HASH = "manifest_sha256"
# What the system says of a file that is missing. Its other errors may pass, and say nothing about the file.
NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The optimizer step in a checkpoint folder's name."""
    match = STEP_FOLDER.fullmatch(folder.name)
    assert match is not None, folder
    return int(match.group(1))


def step_folders(checkpoints: Path) -> list[Path]:
    """All checkpoints, whole or not, by their steps."""
    try:
        paths = list(checkpoints.iterdir())
    except NOT_THERE:
        return []
    return sorted((path for path in paths if STEP_FOLDER.fullmatch(path.name)), key=step_of)


class DamagedError(ValueError):
    """This checkpoint is not as it was written; the message says in what."""


@dataclass(frozen=True)
class Proof:
    """Of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself."""

    step: int
    """Optimizer steps made."""
    samples: int
    """Sequences trained on, over all ranks and epochs."""
    world_size: int
    incarnation: int
    """Which start of training made it."""
    held_out_loss: float | None
    """Of these weights; None where they were not evaluated."""
    seconds: float
    """From the copy of the state to the last byte written."""
    weights_sha256: str
    """Over names, types, shapes and bytes of all weights, whatever file they lie in: equal for runs that ended
    alike."""
    files: Mapping[str, Proof]
    """Every other file of the folder."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(proof.size for proof in self.files.values())


def render_manifest(manifest: Manifest) -> bytes:
    """The file's content; there is one for each manifest, so that every other content is damage."""
    content: dict[str, Any] = {"format": FORMAT, **asdict(manifest)}
    content[OWN_HASH] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps(content, indent=2) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, itself proved whole; its files are not looked at.

    Raises:
        DamagedError: it is missing, or is not as it was written.
        InputError: it is whole, and of another format.
        OSError: the system could not read it now, which proves nothing.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        content = json.loads(raw)
        form = content["format"]
    except (*NOT_THERE, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST}: {_words(error)}") from error
    # A flipped bit in the number must not pass for a version from the future: a manifest with a hash of its own
    # is believed only with that hash. Format 1 had none.
    if form != FORMAT and (OWN_HASH not in content or _own_hash(content) == content[OWN_HASH]):
        raise InputError(
            f"checkpoint {folder} has format {form}, and this version reads format {FORMAT}: go on with the version "
            f"that wrote it, or choose another --experiment-name (--model-name {folder} starts from its weights)"
        )
    try:
        fields = {name: content[name] for name in Manifest.__dataclass_fields__}
        files = {name: Proof(proof["size"], proof["sha256"]) for name, proof in fields.pop("files").items()}
        manifest = Manifest(**fields, files=files)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST}: {_words(error)}") from error
    if render_manifest(manifest) != raw:
        raise DamagedError(f"{MANIFEST} has another hash than when it was written")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its proof; sizes first, because that costs nothing.

    Raises:
        DamagedError: names the first that differs.
        OSError: the system could not read one now, which proves nothing.
    """
    for name, proof in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except NOT_THERE as error:
            raise DamagedError(f"{name} is missing") from error
        if size != proof.size:
            raise DamagedError(f"{name} has {size} bytes instead of {proof.size}")
    for name, proof in manifest.files.items():
        try:
            found = file_sha256(folder / name)
        except NOT_THERE as error:
            raise DamagedError(f"{name}: {_words(error)}") from error
        if found != proof.sha256:
            raise DamagedError(f"{name} has another hash than when it was written")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_hash(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != OWN_HASH}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _words(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"no {error}" if isinstance(error, KeyError) else str(error)
