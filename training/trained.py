"""A trained model by name: a run and one of its checkpoints, one checkpoint's folder, or any Hugging Face folder.

A checkpoint is proved by its manifest before anything is done with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import InputError, first_line
from training.incarnation import overtaken_by, read_claims
from training.manifest import (
    MANIFEST,
    DamagedError,
    Manifest,
    check_files,
    read_manifest,
    step_folder,
    step_folders,
    step_of,
)
from training.retention import best_of, look
from training.run_directory import RunDirectory, folder_of, read_config

LAST, BEST = "last", "best"


@dataclass(frozen=True)
class Trained:
    """A model to be used."""

    folder: Path
    """`from_pretrained` loads it."""
    manifest: Manifest | None = None
    """Of a checkpoint, every file of which was as it was written; None for another folder."""
    run: RunDirectory | None = None
    """Where it came from, where that is known."""

    def description(self) -> Mapping[str, Any]:
        """The run's `config.json`; empty where that is not known."""
        return read_config(self.run) if self.run is not None else {}

    def options(self) -> Mapping[str, Any]:
        """What the run was given, by field name of `TrainConfig`; empty where that is not known."""
        return self.description().get("config", {})

    def identity(self) -> Mapping[str, Any]:
        """Model and data of the run, by `training.run_directory.run_identity`; empty where that is not known."""
        return self.description().get("identity", {})


def find_trained(name: str, output_dir: Path, checkpoint: str | None) -> Trained:
    """The model of that name.

    Args:
        name: a run's directory or the name of an experiment below `output_dir`, a checkpoint's folder, or a folder with
            `config.json` and weights.
        output_dir: where runs lie.
        checkpoint: of a run: a step, `best` (the lowest held-out loss) or `last`, which None is too.

    Raises:
        InputError: there is nothing of that name, no such checkpoint, or it is not as it was written.
    """
    folder = folder_of(name, output_dir, "a run's directory, a checkpoint's or a model's folder")
    try:
        run = RunDirectory(folder)
        if not (folder / MANIFEST).exists() and run.checkpoints.is_dir():
            chosen = choose_checkpoint(run, LAST if checkpoint is None else checkpoint)
            return Trained(chosen, _proved(chosen), run)
        if checkpoint is not None:
            raise InputError(f"--checkpoint {checkpoint} is for a run's directory, and {folder} is none; leave it out")
        if (folder / MANIFEST).exists():
            above = folder.absolute().parent
            run = RunDirectory(above.parent)
            return Trained(folder, _proved(folder), run if run.checkpoints == above else None)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror or error}; try again") from error
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return Trained(folder)
    raise InputError(
        f"{folder}: there is neither a checkpoint nor a model (config.json and *.safetensors) in it; a run has its "
        f"first checkpoint after --ckpt-freq steps"
    )


def choose_checkpoint(run: RunDirectory, which: str) -> Path:
    """The folder of a checkpoint of a run, not yet proved.

    Raises:
        InputError: there is none such.
    """
    folders = step_folders(run.checkpoints)
    there = ", ".join(str(step_of(folder)) for folder in folders) or "none"
    if not folders:
        raise InputError(f"{run.root} has no checkpoint yet; the first comes after --ckpt-freq steps")
    if which == BEST:
        best = best_of(look(run.checkpoints, 0, ()))
        if best is None:
            raise InputError(f"--checkpoint best: none in {run.root} has a held-out loss; give a step of {there}")
        return best.folder
    if which == LAST:
        claims = read_claims(run.checkpoints)
        for folder in reversed(folders):
            manifest = _manifest(folder)
            if overtaken_by(claims, manifest.incarnation, manifest.step) is None:
                return folder
        raise InputError(f"{run.root}: a later attempt began anew and has no checkpoint yet; give --checkpoint {there}")
    if not which.isdecimal():
        raise InputError(f"--checkpoint {which}: a step, best or last is wanted; there are {there}")
    folder = step_folder(run.checkpoints, int(which))
    if folder not in folders:
        raise InputError(f"--checkpoint {which}: {run.root} has none of that step, there are {there}")
    return folder


def _proved(folder: Path) -> Manifest:
    manifest = _manifest(folder)
    try:
        check_files(folder, manifest)
    except DamagedError as fault:
        raise _damaged(folder, fault) from fault
    return manifest


def _manifest(folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except DamagedError as fault:
        raise _damaged(folder, fault) from fault


def _damaged(folder: Path, fault: DamagedError) -> InputError:
    return InputError(
        f"checkpoint {folder} is not as it was written ({fault}) and is not used; give another with --checkpoint STEP"
    )


def load_for_use(folder: Path, device: Any) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, not to be trained.

    Raises:
        InputError: one of them cannot be loaded.
    """
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError, UnpicklingError) as error:
        raise InputError(
            f"{folder} cannot be loaded ({first_line(error)}); give a folder with model and tokenizer"
        ) from error
    return model.to(device).eval(), tokenizer
