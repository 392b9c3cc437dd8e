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
from training.errors import InputError
from training.incarnation import overtaken_by, read_claims
from training.manifest import DamagedError, check_files, read_manifest
from training.publish import step_folders, step_of
from training.ranks import RankInfo


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


@dataclass(frozen=True)
class Newest:
    """What there is to go on from."""

    folder: Path | None
    """None where training begins at the start."""
    done: Progress
    passed_over: tuple[str, ...]
    """Names of newer ones that are broken or were overtaken."""


def newest_checkpoint(checkpoints: Path, say: Callable[[str], None]) -> Newest:
    """The newest checkpoint that its manifest proves whole and that no later start has overtaken, found by looking.

    Args:
        checkpoints: the folder of checkpoints; may be missing.
        say: told about each checkpoint that is skipped, and why.

    Raises:
        InputError: there are checkpoints that count, and none is whole; or one has another format.
    """
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
                raise DamagedError(f"manifest.json is that of step {manifest.step}")
            check_files(folder, manifest)
        except DamagedError as fault:
            faults.append(f"{folder.name} is not whole ({fault})")
            continue
        return Newest(folder, Progress(manifest.step, manifest.samples), passed_over())
    if faults:
        # To start over would overwrite the metrics of what was trained: that is for the user to say.
        raise InputError(
            f"no checkpoint in {checkpoints} can be resumed: {'; '.join(faults)}; delete that folder to train from "
            f"the start, or choose another --experiment-name"
        )
    return Newest(None, Progress(0, 0), passed_over())


def find_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None where every file is as it was written."""
    try:
        check_files(folder, read_manifest(folder))
    except (DamagedError, InputError) as error:
        return str(error)
    return None


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's state back, in place."""
    from safetensors import safe_open

    state: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(folder / "optimizer.safetensors", framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118 – not a mapping
            index, name = key.split(".", 1)
            # Not memory-mapped: the tensors are kept, and this checkpoint is deleted under them once newer ones
            # exist.
            state.setdefault(int(index), {})[name] = file.get_tensor(key).clone()
    groups = json.loads(metadata["param_groups"])
    for group in groups:
        # JSON knows no tuples.
        group |= {name: tuple(value) for name, value in group.items() if name != "params" and isinstance(value, list)}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def restore_rng(folder: Path, ranks: RankInfo, device: torch.device) -> dict[str, Any]:
    """Put this rank's random state back; left as it is where the checkpoint was made by another number of ranks.

    Returns the conditions under which the checkpoint was made; empty where it does not tell.
    """
    states = torch.load(folder / "rng.pt", map_location="cpu", weights_only=True)
    if len(states) != ranks.world_size:
        return states[0].get("conditions", {})
    random_state.restore(states[ranks.rank], device)
    return states[ranks.rank].get("conditions", {})
