"""What a person sees while it trains: a progress bar on a terminal, a timed line now and then in a log."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from training.ranks import SINGLE
from training.terminal import plain

# A log that is read later wants a line now and then, whatever a step takes.
SECONDS_BETWEEN_LINES = 5.0


def on_a_terminal(launcher: str) -> bool:
    """Whether a person's terminal shows this process's output."""
    # Open MPI and srun may give a rank a pseudo-terminal of its own while their output goes to a file.
    return launcher == SINGLE and sys.stdout.isatty()


class Display:
    """Shows steps as they come. Rank 0 has one; the other ranks show nothing."""

    def __init__(self, done: int, total: int, bar: bool) -> None:
        """Show steps after `done` of `total`; `bar` where the output is a terminal that can be written
        over."""
        self._done, self._total = done, total
        self._begin = time.monotonic()
        self._last_line = -SECONDS_BETWEEN_LINES
        self._bar: Any = None
        if bar:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._task = self._bar.add_task("", total=total, completed=done)
            self._bar.start()

    def step(self, row: Mapping[str, Any]) -> None:
        """Show a step by its row of metrics."""
        step = row["step"]
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=_figures(row))
            return
        now = time.monotonic()
        if step in (self._done + 1, self._total) or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            elapsed = now - self._begin
            left = elapsed / (step - self._done) * (self._total - step)
            print(
                f"step {step}/{self._total} · epoch {row['epoch']:.2f} · {_figures(row)} · "
                f"{clock(elapsed)} passed · ETA {clock(left)}",
                flush=True,
            )

    def line(self, text: str) -> None:
        """Print a line; above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(plain(text), highlight=False, markup=False)
        else:
            print(plain(text), flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _figures(row: Mapping[str, Any]) -> str:
    figures = f"loss {row['loss']:.4f} · lr {row['lr']:.2e} · {row['tokens_per_second']:,.0f} tokens/s"
    return figures + (f" · MFU {row['mfu']:.1%}" if "mfu" in row else "")


def clock(seconds: float) -> str:
    """A duration as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
