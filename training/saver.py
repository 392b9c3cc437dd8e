"""Saves while the training goes on: the step loop waits for a copy of the state, a thread does the rest.

Rank 0 has one. One save is in flight at most. What goes wrong in the thread is raised by the next call from the
loop, and by `finish`, after which everything that was saved is on disk."""

import io
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.disk_space import SMALL_FILES_BYTES, check_room, room_at
from training.errors import StorageError, TakenOverError
from training.incarnation import check_not_taken_over
from training.interval import Interval, SaveCost, is_due
from training.manifest import RNG, Manifest, step_folder, step_folders
from training.publish import FileContent, publish
from training.retention import drop_superfluous
from training.snapshot import HostBuffer, HostFile, expected_bytes, state_files, take_part, tensors_sha256


@dataclass(frozen=True)
class SaveReport:
    """A checkpoint that is on disk."""

    step: int
    seconds: float
    """From the call to the rename."""
    blocking_seconds: float
    """Of these the step loop waited."""
    bytes: int
    folder: Path

    def row(self) -> dict[str, Any]:
        """Its row of metrics."""
        return {
            "step": self.step,
            "checkpoint_seconds": round(self.seconds, 6),
            "checkpoint_blocking_seconds": round(self.blocking_seconds, 6),
            "checkpoint_bytes": self.bytes,
        }


@dataclass
class _InFlight:
    """One save on its way to the disk."""

    step: int
    samples: int
    held_out_loss: float | None
    files: list[HostFile]
    rngs: list[dict[str, Any]]
    called: float
    begun: float
    """Once the save before was on disk."""
    blocking: float
    train_seconds: float
    thread: threading.Thread | None = None
    manifest: Manifest | None = None
    seconds: float = 0.0
    error: Exception | None = field(default=None)


class Saver:
    """Makes the checkpoints of one start of training.

    `saved_step` is the step of the newest checkpoint that is in place, resumed from or made; None where there is
    none.
    """

    def __init__(
        self,
        checkpoints: Path,
        incarnation: int,
        world_size: int,
        model: Any,
        tokenizer: Any,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        keep: int = 2,
        interval: Interval | None = None,
        mtbf: float = 0.0,
        resumed_step: int | None = None,
        passed_over: Collection[str] = (),
        say: Callable[[str], None] = print,
        on_saved: Callable[[int, float], None] = lambda step, train_seconds: None,
    ) -> None:
        """Make ready, so that the first save costs no more than the others: allocates and touches the memory.

        Args:
            checkpoints: the folder of checkpoints.
            incarnation: what this start claimed.
            world_size: ranks.
            model: the model itself, without DDP. Where FSDP has sharded it, the other ranks' `NoSaver` takes part.
            tokenizer: its tokenizer; does not change any more.
            optimizer: its state is saved.
            device: where both lie.
            keep: how many checkpoints to keep besides the best.
            interval: when one is due.
            mtbf: mean seconds between faults, for the interval `auto`.
            resumed_step: the step of the checkpoint resumed from.
            passed_over: names of checkpoints that were found broken.
            say: told when a save has to wait for the one before.
            on_saved: told, in the thread that writes, of each checkpoint as soon as it is in place: its step, and the
                seconds of training that `save` was given.
        """
        self._checkpoints, self._incarnation, self._world_size = checkpoints, incarnation, world_size
        self._model, self._optimizer = model, optimizer
        self._keep, self._passed_over, self._say = keep, set(passed_over), say
        self._on_saved = on_saved
        self._interval, self._mtbf = interval or Interval(), mtbf
        self._small_files = small_files(model, tokenizer)
        self._size = expected_bytes(model, optimizer)
        self._buffer = HostBuffer(device)
        self._buffer.reserve(self._size)
        self._flying: _InFlight | None = None
        self._reports: list[SaveReport] = []
        self._cost = SaveCost()
        self._cost_known = False
        self._duration = 0.0
        self._last_save = time.monotonic()
        self.saved_step = resumed_step

    def check_room(self, evaluated: bool) -> None:
        """Look whether the disk can take what is to come; says so where it is scarce.

        Raises:
            InputError: not even one checkpoint has room.
            StorageError: the same, of a run that is resumed.
        """
        self._checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = len(step_folders(self._checkpoints))
        warning = check_room(
            room_at(self._checkpoints),
            self._size + SMALL_FILES_BYTES,
            self._keep,
            there,
            evaluated,
            self._checkpoints,
            resuming=self.saved_step is not None,
        )
        if warning:
            self._say(warning)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be made after this step. For rank 0 to tell the others: clocks differ."""
        flying = self._flying is not None and self._flying.thread is not None and self._flying.thread.is_alive()
        since = time.monotonic() - self._last_save
        cost = self._cost.seconds if self._cost_known else None
        return is_due(self._interval, step, since, cost, self._duration, self._mtbf, flying)

    def step_made(self, seconds: float) -> list[SaveReport]:
        """To be called after every step: what has come onto the disk since the last call.

        Args:
            seconds: that the step took; so the saver learns what a save costs the training.

        Raises:
            StorageError: the save in flight failed.
        """
        flying = self._flying
        self._cost.step(seconds, flying is not None)
        if flying is not None and flying.thread is not None and not flying.thread.is_alive():
            self._land()
        return self.reports()

    def reports(self) -> list[SaveReport]:
        """What has come onto the disk and was not yet returned."""
        reports, self._reports = self._reports, []
        return reports

    def save(
        self,
        step: int,
        samples: int,
        rngs: Sequence[dict[str, Any]],
        held_out_loss: float | None = None,
        train_seconds: float = 0.0,
    ) -> None:
        """Copy the state and begin to write it; returns when training may go on.

        Args:
            step: optimizer steps made.
            samples: sequences trained on, over all ranks and epochs.
            rngs: the random state of every rank, in rank order.
            held_out_loss: of these weights, where they were evaluated.
            train_seconds: that were spent on the steps so far, for `on_saved`.

        Raises:
            StorageError: the save before this one failed.
        """
        called = time.monotonic()
        if self._flying is not None:
            if self._flying.step == step:
                return
            thread = self._flying.thread
            if thread is not None and thread.is_alive():
                self._say(
                    f"the checkpoint of step {step} waits for that of step {self._flying.step}, which is still being "
                    f"written: save less often (--ckpt-freq), or to a faster disk"
                )
            self.finish()
        if self.saved_step == step:
            return
        begun = time.monotonic()
        files = self._buffer.capture(state_files(self._model, self._optimizer))
        captured = time.monotonic()
        flying = _InFlight(
            *(step, samples, held_out_loss, files, list(rngs), called, begun),
            blocking=captured - called,
            train_seconds=train_seconds,
        )
        # Not what it waited for the save before: that one cost it.
        self._cost.begin(captured - begun)
        self._last_save = captured
        # Not a daemon: whatever ends the main thread, this save is brought to its end.
        flying.thread = threading.Thread(target=self._write, args=(flying,), name=f"checkpoint of step {step}")
        self._flying = flying
        flying.thread.start()

    def finish(self) -> None:
        """Wait until everything saved is on disk.

        Raises:
            StorageError: it could not be written.
        """
        if self._flying is not None:
            assert self._flying.thread is not None
            self._flying.thread.join()
            self._land()

    def _land(self) -> None:
        """Take over what the thread has left."""
        flying = self._flying
        assert flying is not None
        self._flying = None
        if flying.manifest is not None:
            self.saved_step = flying.step
            self._duration, self._cost_known = flying.seconds - (flying.begun - flying.called), True
            folder, size = step_folder(self._checkpoints, flying.step), flying.manifest.bytes
            self._reports.append(SaveReport(flying.step, flying.seconds, flying.blocking, size, folder))
        if flying.error is not None:
            raise flying.error

    def _write(self, flying: _InFlight) -> None:
        """In the thread: the files and the rename, the news of it, then room for the next."""
        try:
            self._publish(flying)
            self._on_saved(flying.step, flying.train_seconds)
            drop_superfluous(self._checkpoints, self._keep, self._incarnation, self._passed_over)
        except Exception as error:
            flying.error = error

    def _publish(self, flying: _InFlight) -> None:
        try:
            flying.manifest = publish(
                self._checkpoints,
                self._contents(flying),
                step=flying.step,
                samples=flying.samples,
                world_size=self._world_size,
                incarnation=self._incarnation,
                held_out_loss=flying.held_out_loss,
                weights_sha256=tensors_sha256(flying.files[0]),
                begun=flying.begun,
            )
        except TakenOverError:
            raise
        except OSError as error:
            raise self._storage_error(flying.step, error) from error
        flying.seconds = time.monotonic() - flying.called

    def _contents(self, flying: _InFlight) -> list[FileContent]:
        rng = io.BytesIO()
        torch.save(flying.rngs, rng)
        return [
            *self._small_files,
            *(FileContent(file.name, [file.header, file.data]) for file in flying.files),
            FileContent(RNG, [rng.getvalue()]),
        ]

    def _storage_error(self, step: int, error: OSError) -> StorageError:
        try:
            # A newer attempt removes what this one is writing: that is the cause then.
            check_not_taken_over(self._checkpoints, self._incarnation)
        except TakenOverError as taken_over:
            return taken_over
        except OSError:
            pass
        last = f"the last one is that of step {self.saved_step}" if self.saved_step is not None else "there is none yet"
        where = error.filename if error.filename is not None else self._checkpoints
        return StorageError(
            f"the checkpoint of step {step} cannot be written ({last}): {where}: {error.strerror or error}; make room "
            f"or repair that file system, then run the same command again",
            error.errno,
        )


class NoSaver:
    """A `Saver` that writes nothing, for the other ranks: where FSDP has sharded the model, each gives its slices."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, sharded: bool) -> None:
        self._model, self._optimizer, self._sharded = model, optimizer, sharded

    def save(self, *given: Any) -> None:
        """Take part in what `Saver.save` captures."""
        if self._sharded:
            take_part(state_files(self._model, self._optimizer))

    def due(self, step: int) -> bool:
        return False

    def step_made(self, seconds: float) -> list[SaveReport]:
        return []

    def reports(self) -> list[SaveReport]:
        return []

    def check_room(self, evaluated: bool) -> None:
        pass

    def finish(self) -> None:
        pass


def small_files(model: Any, tokenizer: Any) -> list[FileContent]:
    """What `from_pretrained` needs besides the weights. Made once: it does not change, and to make it again at
    every save would hold the interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return [FileContent(path.name, [path.read_bytes()]) for path in sorted(Path(folder).iterdir())]
