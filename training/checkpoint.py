"""Checkpoints: a folder per step that is either whole or not there, proved by a manifest of hashes.

A folder `step-00000008` can be given to transformers' `from_pretrained`, or to --model-name, as it is: it
holds `model.safetensors`, `config.json` and the tokenizer. Beside them `optimizer.pt`, `rng.pt` (the random
state of every rank) and `manifest.json` (how far the run had come, and size and SHA-256 of every other
file): `torch.load` accepts flipped bits without a word. The learning rate needs no state: it is computed
from the step."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from training import random_state
from training.errors import InputError
from training.ranks import RankInfo

FORMAT = 1
KEEP = 2
STEP_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int
    """Optimizer steps made."""
    samples: int
    """Sequences trained on, over all ranks and epochs."""


def rng_state(device: torch.device) -> dict[str, Any]:
    """The random state of this rank."""
    return random_state.capture(device)


def restore_rng(folder: Path, ranks: RankInfo, device: torch.device) -> dict[str, Any]:
    """Put this rank's random state back; left as it is where the checkpoint was made by another number of ranks.

    Returns the conditions under which the checkpoint was made; empty where it does not tell.
    """
    states = torch.load(folder / "rng.pt", map_location="cpu", weights_only=True)
    if len(states) != ranks.world_size:
        return states[0].get("conditions", {})
    random_state.restore(states[ranks.rank], device)
    return states[ranks.rank].get("conditions", {})


def save_checkpoint(
    checkpoints: Path,
    progress: Progress,
    model: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    rngs: list[dict[str, Any]],
) -> Path:
    """Write a checkpoint aside, force it to disk, and rename it into place; then drop all but the last two.

    Called by rank 0 alone.

    Args:
        checkpoints: the folder of checkpoints.
        progress: names the checkpoint.
        model: the model itself, without DDP.
        tokenizer: its tokenizer.
        optimizer: its state is saved.
        rngs: `rng_state` of every rank, in rank order.
    """
    folder = step_folder(checkpoints, progress.step)
    aside = checkpoints / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    torch.save(optimizer.state_dict(), aside / "optimizer.pt")
    torch.save(rngs, aside / "rng.pt")
    files = sorted(path for path in aside.iterdir() if path.is_file())
    manifest = {"format": FORMAT, **asdict(progress), "files": {path.name: _proof(path) for path in files}}
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in (*files, aside / "manifest.json", aside):
        _force_to_disk(path)
    if folder.exists():
        # Only a checkpoint that proved broken is ever written again; a valid one of this step would have
        # been resumed.
        shutil.rmtree(folder)
    os.rename(aside, folder)
    _force_to_disk(checkpoints)
    _drop_old(checkpoints, progress.step)
    return folder


def newest_checkpoint(checkpoints: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that its manifest proves whole, found by looking; None where none was ever made.

    Args:
        checkpoints: the folder of checkpoints; may be missing.
        say: told about each checkpoint that is skipped, and why.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    faults: list[str] = []
    for folder in reversed(_step_folders(checkpoints)):
        fault = find_fault(folder)
        if fault is None:
            for skipped in faults:
                say(f"checkpoint {checkpoints}/{skipped}: skipped")
            return folder
        faults.append(f"{folder.name} is not whole ({fault})")
    if faults:
        # To start over would overwrite the metrics of what was trained: that is for the user to say.
        raise InputError(
            f"no checkpoint in {checkpoints} can be resumed: {'; '.join(faults)}; delete that folder to train from "
            f"the start, or choose another --experiment-name"
        )
    return None


def find_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None where every file is as it was written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, while this version reads {FORMAT}"
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest.json: {error}"
    for name, proof in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != proof["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {proof['size']}"
        if _proof(path) != proof:
            return f"{name} has another hash than when it was written"
    return None


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The optimizer step in a checkpoint folder's name."""
    match = STEP_FOLDER.fullmatch(folder.name)
    assert match is not None, folder
    return int(match.group(1))


def read_progress(folder: Path) -> Progress:
    """How far the run of a whole checkpoint had come."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return Progress(manifest["step"], manifest["samples"])


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's state back, in place."""
    # Not memory-mapped: the tensors are kept, and this checkpoint is deleted under them once two newer ones
    # exist.
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))


def _step_folders(checkpoints: Path) -> list[Path]:
    if not checkpoints.is_dir():
        return []
    return sorted((path for path in checkpoints.iterdir() if STEP_FOLDER.fullmatch(path.name)), key=step_of)


def _drop_old(checkpoints: Path, step: int) -> None:
    """Keep the last two up to this step; a later one failed its proof, or this step would not have been made
    again."""
    folders = _step_folders(checkpoints)
    until_now = [folder for folder in folders if step_of(folder) <= step]
    for folder in folders:
        if folder not in until_now[-KEEP:]:
            shutil.rmtree(folder, ignore_errors=True)


def drop_unfinished(checkpoints: Path) -> None:
    """Remove what an attempt that died while saving left behind."""
    for path in checkpoints.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _proof(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
