"""Checkpoints as they are found again: the newest that is whole and belongs to the run, and what it gives back.

A folder `step-00000008` can be given to transformers' `from_pretrained`, or to --model-name, as it is: it
holds `model.safetensors`, `config.json` and the tokenizer. Beside them `optimizer.safetensors`, `rng.pt` (the
random state of every rank) and `manifest.json`. The learning rate needs no state: it is computed from the step."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training import random_state
from training.errors import InputError, StorageError
from training.incarnation import overtaken_by, read_claims
from training.manifest import (
    MANIFEST,
    OPTIMIZER,
    RNG,
    DamagedError,
    Manifest,
    check_files,
    read_manifest,
    render_manifest,
    step_folders,
    step_of,
)
from training.ranks import RankInfo
from training.strategy import sliced_like


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int
    """Optimizer steps made."""
    samples: int
    """Sequences trained on, over all ranks and epochs."""


@dataclass(frozen=True)
class Newest:
    """What there is to go on from."""

    folder: Path | None
    """None where training begins at the start."""
    done: Progress
    passed_over: tuple[str, ...]
    """Names of newer ones that are broken or were overtaken."""
    manifest: Manifest | None = None

    def is_still_there(self) -> bool:
        """Whether it lies there as it was found.

        Raises:
            OSError: the system could not read it now.
        """
        if self.folder is None or self.manifest is None:
            return True
        try:
            # As text: a held-out loss may be NaN, which as a number does not equal itself.
            return render_manifest(read_manifest(self.folder)) == render_manifest(self.manifest)
        except (DamagedError, InputError):
            return False


def newest_checkpoint(checkpoints: Path, say: Callable[[str], None]) -> Newest:
    """The newest checkpoint that its manifest proves whole and that no later start has overtaken, found by looking.

    Args:
        checkpoints: the folder of checkpoints; may be missing.
        say: told about each checkpoint that is skipped, and why.

    Raises:
        InputError: there are checkpoints, none can be resumed, and to begin at the start would lose what was trained;
            or one has another format.
        StorageError: the system could not read one now.
    """
    try:
        return _newest(checkpoints, say)
    except OSError as error:
        where = error.filename if error.filename is not None else checkpoints
        raise StorageError(
            f"the checkpoints in {checkpoints} cannot be read: {where}: {error.strerror or error}; repair that file "
            f"system, then run the same command again",
            error.errno,
        ) from error


def _newest(checkpoints: Path, say: Callable[[str], None]) -> Newest:
    faults: list[str] = []
    overtaken: list[str] = []
    claims = read_claims(checkpoints)

    def passed_over() -> tuple[str, ...]:
        for skipped in (*faults, *overtaken):
            say(f"checkpoint {checkpoints}/{skipped}: skipped")
        return tuple(skipped.split()[0] for skipped in (*faults, *overtaken))

    for folder in reversed(step_folders(checkpoints)):
        try:
            manifest = read_manifest(folder)
            later = overtaken_by(claims, manifest.incarnation, manifest.step)
            if later is not None:
                overtaken.append(
                    f"{folder.name} was made by incarnation {manifest.incarnation} after incarnation "
                    f"{later.incarnation} had gone on from step {later.resumed_step}"
                )
                continue
            if manifest.step != step_of(folder):
                raise DamagedError(f"{MANIFEST} is that of step {manifest.step}")
            check_files(folder, manifest)
        except DamagedError as fault:
            faults.append(f"{folder.name} is not whole ({fault})")
            continue
        return Newest(folder, Progress(manifest.step, manifest.samples), passed_over(), manifest)
    if faults or (overtaken and claims[-1].resumed_step > 0):
        # To start over would overwrite the metrics of what was trained: that is for the user to say.
        raise InputError(
            f"no checkpoint in {checkpoints} can be resumed: {'; '.join([*faults, *overtaken])}; delete that folder "
            f"to train from the start, or choose another --experiment-name"
        )
    return Newest(None, Progress(0, 0), passed_over())


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's state back, in place; its options stay those that it was made with.

    Of tensors that are shared out each rank keeps its slice: it may have been saved by another number of ranks.
    """
    from safetensors import safe_open

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(folder / OPTIMIZER, framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118 – not a mapping
            index, name = key.split(".", 1)
            # Not memory-mapped: the tensors are kept, and this checkpoint is deleted under them once newer ones
            # exist.
            mine = sliced_like(parameters[int(index)], file.get_tensor(key)).clone()
            state.setdefault(int(index), {})[name] = mine
    saved, made = json.loads(metadata["param_groups"]), optimizer.state_dict()["param_groups"]
    groups = [options | {"params": group["params"]} for group, options in zip(saved, made, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def restore_rng(folder: Path, ranks: RankInfo, device: torch.device) -> dict[str, Any]:
    """Put this rank's random state back; left as it is where the checkpoint was made by another number of ranks.

    Returns the conditions under which the checkpoint was made; empty where it does not tell.
    """
    states = read_states(folder)
    mine = states[ranks.rank] if len(states) == ranks.world_size else None
    if mine is not None:
        random_state.restore(mine, device)
    return (mine or states[0]).get("conditions", {})


def read_states(folder: Path) -> list[dict[str, Any]]:
    """The random state of every rank that made a checkpoint, each with its `conditions`."""
    return torch.load(folder / RNG, map_location="cpu", weights_only=True)
