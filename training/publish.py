"""From files in memory to a checkpoint on disk: written aside, forced to disk, proved, and renamed into place.

A folder `step-00000008` is whole or not there, whenever the process or the host ends. Files aside carry the
incarnation of their maker, so that a later one knows whose they are."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.incarnation import check_not_taken_over, refuse_newer
from training.manifest import MANIFEST, Manifest, Proof, render_manifest, step_folder
from training.whole_file import force_to_disk, pieces, write_all

ASIDE_FOLDER = re.compile(r"\.step-\d{8,}(?:\.old)?\.i(\d+)")


@dataclass(frozen=True)
class FileContent:
    """A file to be written: its parts, one after the other."""

    name: str
    parts: Sequence[bytes | memoryview]


def publish(
    checkpoints: Path,
    files: Iterable[FileContent],
    *,
    step: int,
    samples: int,
    world_size: int,
    incarnation: int,
    held_out_loss: float | None,
    weights_sha256: str,
    begun: float,
) -> Manifest:
    """Make the checkpoint of a step.

    Args:
        checkpoints: the folder of checkpoints.
        files: all but the manifest.
        begun: when the state was copied, by `time.monotonic`.

    The others are the manifest's fields.

    Raises:
        TakenOverError: a later incarnation exists, so this one must not write.
        OSError: the system refused; what was there before is there still. Where the very last call failed, the new
        one is there too, but a power failure may take it.
    """
    check_not_taken_over(checkpoints, incarnation)
    folder = step_folder(checkpoints, step)
    aside = checkpoints / f".{folder.name}.i{incarnation:06d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        proofs = {file.name: _write(aside / file.name, file.parts) for file in files}
        manifest = Manifest(
            step=step,
            samples=samples,
            world_size=world_size,
            incarnation=incarnation,
            held_out_loss=held_out_loss,
            seconds=round(time.monotonic() - begun, 3),
            weights_sha256=weights_sha256,
            files=proofs,
        )
        _write(aside / MANIFEST, [render_manifest(manifest)])
        force_to_disk(aside)
        check_not_taken_over(checkpoints, incarnation)
        _put_in_place(aside, folder, incarnation)
    except BaseException:
        # So that a full disk is not kept full by what it could not hold.
        shutil.rmtree(aside, ignore_errors=True)
        raise
    force_to_disk(checkpoints)
    # The look before the rename may have come a moment too early: what was made then does not count, and must not
    # be reported as saved.
    check_not_taken_over(checkpoints, incarnation)
    return manifest


def _put_in_place(aside: Path, folder: Path, incarnation: int) -> None:
    if not folder.exists():
        try:
            # rename never replaces a folder that has something in it, so that whoever is second fails.
            os.rename(aside, folder)
            return
        except OSError:
            if not folder.exists():
                raise
    # What stands there is broken, or an earlier incarnation made it after this one had gone on from before:
    # otherwise this step would not have been made again. Looked at again once it is out of the way, because
    # until then another could have replaced it.
    old = folder.with_name(f".{folder.name}.old.i{incarnation:06d}")
    refuse_newer(folder, incarnation)
    shutil.rmtree(old, ignore_errors=True)
    os.rename(folder, old)
    try:
        refuse_newer(old, incarnation)
        os.rename(aside, folder)
    except BaseException:
        if not folder.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> Proof:
    """Write and hash in one pass, and force to disk."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            for piece in pieces(memoryview(part)):
                digest.update(piece)
                write_all(descriptor, piece)
                size += len(piece)
        os.fsync(descriptor)
    except OSError as error:
        # os.write knows no path.
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(descriptor)
    return Proof(size, digest.hexdigest())


def drop_unfinished(checkpoints: Path, incarnation: int) -> None:
    """Remove what earlier starts that died while saving left behind; what carries this or a later number is
    somebody's work."""
    for path in checkpoints.glob(".step-*"):
        match = ASIDE_FOLDER.fullmatch(path.name)
        if match is None or int(match.group(1)) < incarnation:
            shutil.rmtree(path, ignore_errors=True)
