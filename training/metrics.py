"""`metrics.jsonl`: one JSON object per logged step and per evaluation, each step once, whatever was
interrupted."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from training.divergence import SKIPPED
from training.errors import StorageError
from training.whole_file import write_whole

if TYPE_CHECKING:
    from training.loop import StepResult

COLUMNS = {
    "step": "Optimizer steps made, this one included.",
    "epoch": "Passes over the training data, a fraction.",
    "loss": "Nats per token, mean over all ranks and accumulation steps.",
    "lr": "Learning rate of this step.",
    "grad_norm": "Before clipping.",
    "tokens_per_second": "Over all ranks.",
    "data_seconds": "Of rank 0, waiting for its batches.",
    "forward_seconds": "Of rank 0, in the forward passes.",
    "backward_seconds": "Of rank 0, in the backward passes.",
    "agree_seconds": "Of rank 0, until all ranks know the step's loss, norm and requests.",
    "update_seconds": "Of rank 0, in the optimizer; on a GPU in that of the step before.",
    "step_seconds": "Of rank 0, the whole step.",
    "memory_peak_bytes": "Of rank 0: torch's on a GPU, the process's on a CPU.",
    "memory_allocated_bytes": "Of rank 0, now; on GPUs.",
    "mfu": "Model FLOPs utilisation, 0 to 1; on known GPUs.",
    "checkpoint_seconds": "Until the checkpoint was on disk.",
    "checkpoint_blocking_seconds": "Those of them that the steps waited.",
    "checkpoint_bytes": "Of all its files.",
    "eval_loss": "Nats per token on the held-out documents.",
    "perplexity": "e to the power of that.",
    "event": "Something that happened at this step, whatever --log-freq says.",
}
"""What the numbers of a row mean. A row is of a step, a checkpoint, an evaluation or an event, which has fields of its
own."""


RESUMED = "resumed"
"""The event with which an attempt goes on."""


def step_row(
    result: "StepResult", epoch: float, tokens: int, mfu: float | None, memory: Mapping[str, int]
) -> dict[str, Any]:
    """The row of one optimizer step.

    Args:
        result: the step.
        epoch: passes over the training data so far, a fraction.
        tokens: tokens of this step, over all ranks.
        mfu: model FLOPs utilisation, where the device's peak is known.
        memory: bytes, of rank 0.
    """
    row: dict[str, Any] = {
        "step": result.step,
        "epoch": round(epoch, 6),
        "loss": result.loss,
        "lr": result.lr,
        "grad_norm": result.grad_norm,
        "tokens_per_second": tokens / result.seconds,
    }
    row |= {f"{phase}_seconds": round(seconds, 6) for phase, seconds in result.phases.items()}
    row["step_seconds"] = round(result.seconds, 6)
    row |= memory
    if mfu is not None:
        row["mfu"] = mfu
    return row


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, without half a line at its end; none where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if _step(line) < math.inf]


def skipped_steps(rows: Iterable[Mapping[str, Any]], until: int) -> int:
    """How many steps up to `until` left the weights as they were."""
    return sum(row.get("event") == SKIPPED and row["step"] <= until for row in rows)


def has_evaluation(rows: Iterable[Mapping[str, Any]], step: int) -> bool:
    """Whether the held-out loss of this step was told."""
    return any("eval_loss" in row and row["step"] == step for row in rows)


def before(path: Path, step: int) -> tuple[int, bool]:
    """What an attempt that goes on from this step must know of those before: how many steps were skipped, and whether
    the held-out loss of this one was told."""
    rows = read_rows(path)
    return skipped_steps(rows, step), has_evaluation(rows, step)


def resumed_event(step: int, changes: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The row and the line that tell whether an attempt computes what the one before would have."""
    row: dict[str, Any] = {"step": step, "event": RESUMED, "bit_exact": not changes}
    if not changes:
        return row, f"resumed at step {step}, bit-exact"
    return row | {"changes": list(changes)}, f"resumed at step {step}, not bit-exact: {', '.join(changes)}"


def bit_exact(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether every attempt went on under the same conditions as the one before."""
    return all(row.get("bit_exact") for row in rows if row.get("event") == RESUMED)


class MetricsFile:
    """Appends rows; each is with the system as a whole line at once: it outlives this process, though not its host."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Open for appending after `last_step`: rows beyond it, of an attempt whose later steps are lost,
        are dropped."""
        self._path = path
        _keep_until(path, last_step)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; numbers that JSON has no way to write become null.

        Raises:
            StorageError: it cannot be written.
        """
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        try:
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._storage_error(error) from error

    def close(self) -> None:
        """Close the file.

        Raises:
            StorageError: what was written did not come onto the disk.
        """
        try:
            self._file.close()
        except OSError as error:
            raise self._storage_error(error) from error

    def _storage_error(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self._path} cannot be written: {error.strerror or error}; make room or repair that file system, then "
            f"run the same command again",
            error.errno,
        )


def _keep_until(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = [
        line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if _step(line) <= last_step
    ]
    write_whole(path, "".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    """The step of a row; infinite for half a line, so that it is dropped."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int | float) else math.inf
