"""Which attempt of a run may write: each start of training claims the next incarnation number.

Two attempts can be alive at once: a requeued job starts while a process of the first, cut off from the network,
still writes. `incarnations/000003.json` says which start it was and from which step it went on. A writer looks
before it publishes whether a later one exists. That look can come a moment too early, so the readers decide: what
an earlier incarnation made after the step from which a later one went on belongs to no run that counts."""

import errno
import json
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from training.errors import InputError, TakenOverError
from training.manifest import DamagedError, read_manifest
from training.whole_file import force_to_disk, write_whole

FOLDER = "incarnations"
CLAIM_FILE = re.compile(r"(\d{6,})\.json")
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Claim:
    """One start of training."""

    incarnation: int
    resumed_step: int
    """The step it went on from; 0 for the beginning."""
    host: str = ""
    pid: int = 0
    time: float = 0.0


def claim_incarnation(checkpoints: Path, resumed_step: int | None) -> int:
    """Take the next number; of two that ask at once, each gets its own.

    Args:
        checkpoints: the folder of checkpoints.
        resumed_step: the step that this start goes on from; None where `settle_claim` will say it: until then the claim
            keeps earlier starts from saving, and overtakes nothing.
    """
    folder = checkpoints / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    number = newest_incarnation(checkpoints) + 1
    while True:
        try:
            _create_whole(_claim_file(checkpoints, number), _claim_text(number, resumed_step))
        except FileExistsError:
            number += 1
            continue
        for made in (folder, checkpoints, checkpoints.parent):
            force_to_disk(made)
        return number


def settle_claim(checkpoints: Path, incarnation: int, resumed_step: int) -> None:
    """Say in a claim of this process which step it goes on from, now that this is sure."""
    path = _claim_file(checkpoints, incarnation)
    write_whole(path, _claim_text(incarnation, resumed_step))
    for written in (path, path.parent):
        force_to_disk(written)


def _claim_text(incarnation: int, resumed_step: int | None) -> str:
    place = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    return json.dumps({"incarnation": incarnation, "resumed_step": resumed_step, **place}) + "\n"


def _claim_file(checkpoints: Path, incarnation: int) -> Path:
    return checkpoints / FOLDER / f"{incarnation:06d}.json"


def _create_whole(path: Path, text: str) -> None:
    """Create a file that must not exist, with all its content at once."""
    # A name that nobody had: one that was left behind by a killed start may be a link to that start's claim.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with aside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # A file system without hard links: still exclusive, but a reader may find it empty for a moment.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        aside.unlink(missing_ok=True)


def newest_incarnation(checkpoints: Path) -> int:
    """The highest number that was ever claimed; 0 where none was."""
    try:
        names = os.listdir(checkpoints / FOLDER)
    except FileNotFoundError:
        return 0
    return max((int(match.group(1)) for name in names if (match := CLAIM_FILE.fullmatch(name))), default=0)


def read_claims(checkpoints: Path) -> list[Claim]:
    """All starts of this run whose claim is whole and settled, in their order.

    Raises:
        OSError: the system could not read one now.
    """
    claims = []
    for path in sorted((checkpoints / FOLDER).glob("*.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["resumed_step"] is not None:
                claims.append(Claim(**told))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            continue
    return sorted(claims, key=lambda claim: claim.incarnation)


def overtaken_by(claims: list[Claim], incarnation: int, step: int) -> Claim | None:
    """The later start that went on from before this checkpoint, so that it belongs to no run that counts; None where
    it does count.

    Args:
        claims: all starts.
        incarnation: of the checkpoint's maker.
        step: of the checkpoint.
    """
    return next((claim for claim in claims if claim.incarnation > incarnation and claim.resumed_step < step), None)


def check_not_taken_over(checkpoints: Path, incarnation: int) -> None:
    """Refuse to write where a later start of the same run has begun.

    Raises:
        TakenOverError: it names that start.
    """
    newest = newest_incarnation(checkpoints)
    if newest > incarnation:
        raise TakenOverError(
            f"a newer attempt (incarnation {newest}) has taken over {checkpoints}; this one, incarnation "
            f"{incarnation}, must not save: leave it ended, the newer one goes on"
        )


def refuse_newer(folder: Path, incarnation: int) -> None:
    """Refuse to touch a checkpoint that a later start has made.

    Raises:
        TakenOverError: it names that start, or the foreign format.
    """
    try:
        maker = read_manifest(folder).incarnation
    except DamagedError:
        return
    except InputError as error:
        raise TakenOverError(str(error)) from error
    if maker > incarnation:
        raise TakenOverError(
            f"a newer attempt (incarnation {maker}) has taken over and made {folder}; this one, incarnation "
            f"{incarnation}, must not replace it: leave it ended, the newer one goes on"
        )
