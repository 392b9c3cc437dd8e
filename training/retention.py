"""Which checkpoints are kept: the last ones, and the best by its loss on the held-out documents."""

import math
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.errors import InputError
from training.incarnation import check_not_taken_over, overtaken_by, read_claims, refuse_newer
from training.manifest import DamagedError, read_manifest, step_folders


@dataclass(frozen=True)
class Held:
    """A checkpoint that is there."""

    folder: Path
    counts: bool
    """It is whole, as far as is known, and belongs to the run."""
    held_out_loss: float | None = None


def superfluous(held: Sequence[Held], keep: int) -> list[Path]:
    """The folders to remove.

    Args:
        held: all checkpoints, by their steps.
        keep: how many of those that count to keep, the newest; the best one stays besides.
    """
    counting = [one for one in held if one.counts]
    if not counting:
        return []
    kept = {one.folder for one in counting[-keep:]}
    best = best_of(counting)
    if best is not None:
        kept.add(best.folder)
    return [one.folder for one in held if one.folder not in kept]


def best_of(held: Sequence[Held]) -> Held | None:
    """The one with the lowest loss, of equal ones the latest; None where none was evaluated."""
    evaluated = [
        one for one in held if one.counts and one.held_out_loss is not None and math.isfinite(one.held_out_loss)
    ]
    return min(reversed(evaluated), key=lambda one: one.held_out_loss or 0.0, default=None)


def look(checkpoints: Path, incarnation: int, passed_over: Collection[str]) -> list[Held]:
    """All checkpoints, by their manifests; those of a foreign format, or that cannot be read now, are left out, and so
    are left alone.

    Args:
        checkpoints: the folder of checkpoints.
        incarnation: of who looks.
        passed_over: names of those that were found broken when this incarnation began.
    """
    held = []
    claims = read_claims(checkpoints)
    for folder in step_folders(checkpoints):
        try:
            manifest = read_manifest(folder)
        except DamagedError:
            held.append(Held(folder, False))
            continue
        except (InputError, OSError):
            continue
        overtaken = overtaken_by(claims, manifest.incarnation, manifest.step)
        # One of the same name that was made since then is another.
        broken = folder.name in passed_over and manifest.incarnation < incarnation
        counts = overtaken is None and not broken
        held.append(Held(folder, counts, manifest.held_out_loss))
    return held


def drop_superfluous(checkpoints: Path, keep: int, incarnation: int, passed_over: Collection[str]) -> None:
    """Remove what need not be kept; what cannot be removed stays without a word, and is tried again next time.

    An attempt that was overtaken removes nothing; its next save says so.
    """
    try:
        for folder in superfluous(look(checkpoints, incarnation, passed_over), keep):
            check_not_taken_over(checkpoints, incarnation)
            _remove(folder, incarnation)
    except OSError:
        return


def _remove(folder: Path, incarnation: int) -> None:
    # First out of sight: a folder that is removed in part must not look like a checkpoint that is broken.
    gone = folder.with_name(f".{folder.name}.i{incarnation:06d}")
    shutil.rmtree(gone, ignore_errors=True)
    try:
        folder.rename(gone)
    except OSError:
        return
    try:
        # The look before may have come a moment too early: a later start may go on from this one, or have made it.
        check_not_taken_over(folder.parent, incarnation)
        refuse_newer(gone, incarnation)
    except OSError:
        gone.rename(folder)
        raise
    shutil.rmtree(gone, ignore_errors=True)
