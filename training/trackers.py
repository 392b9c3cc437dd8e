"""Trackers that a user asks for with --report-to: they are told what goes into `metrics.jsonl`, and the training never
waits for them.

Each has a thread, in which it is also imported, so that one which is slow, broken or hangs costs the steps nothing:
it is given up with one warning. An attempt that goes on continues the same run of a tracker, and tells no step twice.

Why not the trackers of accelerate, or the callbacks of transformers: the first decide by their own state of the process
group who may write, the second are bound to its Trainer, both write in the training thread and raise there, and neither
knows which steps an earlier attempt has told.
"""

import importlib.util
import json
import math
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import InputError, class_and_line
from training.whole_file import write_json

PROJECT = "slurm-mpi-train"
WAITING_ROWS = 10_000
"""What a tracker may be behind before rows are left out."""
BATCH_SECONDS = 1.0
"""Rows that come within this time are told together."""
CLOSE_SECONDS = 10.0
"""How long the end of the training waits for all trackers. A job that was warned has two minutes in all."""

Rows = Sequence[tuple[int, Mapping[str, float]]]
"""Steps with their values, by the names of `metrics.jsonl`."""


@dataclass(frozen=True)
class Tracked:
    """The run as its trackers are to know it."""

    folder: Path
    """Where they write."""
    name: str
    config: Mapping[str, Any]
    """The options, as JSON has them."""
    done: int
    """The step from which this attempt goes on; 0 begins a new run of each tracker."""


@dataclass(frozen=True)
class Opened:
    """A tracker's run, ready to be told rows."""

    run: str
    """By which the tracker finds it again."""
    log: Callable[[Rows], None]
    close: Callable[[], None]
    replaces: bool = False
    """It has dropped what it was told of steps after `done`, and is told them again."""


def check_installed(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not there; imports none.

    Raises:
        InputError: with the command that installs it.
    """
    for name in names:
        if name in OPENERS and importlib.util.find_spec(name) is None:
            raise InputError(
                f"--report-to {name}: the package is not installed: pip install {name}, or leave {name} out"
            )


class Trackers:
    """The trackers of one attempt. What its methods return are lines for the user; none of them raises or waits for a
    tracker, but for `close`."""

    def __init__(self, names: Sequence[str], run: Tracked) -> None:
        """Open them, each in its thread."""
        self._feeds = [_Feed(name, run) for name in dict.fromkeys(names) if name in OPENERS]

    def tell(self, row: Mapping[str, Any]) -> list[str]:
        """Pass a row of `metrics.jsonl` on; events, which are no measurements, stay there."""
        if "event" not in row and (values := scalars(row)):
            for feed in self._feeds:
                feed.put(row["step"], values)
        return self._faults()

    def close(self, seconds: float = CLOSE_SECONDS) -> list[str]:
        """Let them write what they have, for so many seconds together at most."""
        until = time.monotonic() + seconds
        for feed in self._feeds:
            feed.end()
        for feed in self._feeds:
            feed.join(max(0.0, until - time.monotonic()))
        return self._faults()

    def _faults(self) -> list[str]:
        return [fault for feed in self._feeds if (fault := feed.new_fault()) is not None]


class _Feed:
    """One tracker and the thread that feeds it."""

    def __init__(self, name: str, run: Tracked) -> None:
        self._name, self._run = name, run
        self._rows: queue.Queue[tuple[int, Mapping[str, float]]] = queue.Queue(WAITING_ROWS)
        self._ended = threading.Event()
        self._fault: str | None = None
        self._faulty = False
        # A daemon: a tracker that hangs must not keep the process.
        self._thread = threading.Thread(target=self._feed, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, step: int, values: Mapping[str, float]) -> None:
        if self._faulty:
            return
        try:
            self._rows.put_nowait((step, values))
        except queue.Full:
            self._give_up(f"it is {WAITING_ROWS} rows behind")

    def end(self) -> None:
        self._ended.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._faulty:
            self._give_up("it did not take its last rows in time")

    def new_fault(self) -> str | None:
        """What is wrong with it, once."""
        fault, self._fault = self._fault, None
        return fault

    def _give_up(self, why: str) -> None:
        self._faulty = True
        self._fault = f"warning: --report-to {self._name}: {why}; the training goes on without it"

    def _feed(self) -> None:
        try:
            told = Told(self._run.folder / f"{self._name}.json", self._run.done)
            opened = OPENERS[self._name](self._run, told.run)
            told.run = opened.run
            while True:
                # Before the rows are looked for: what was put before the end is told.
                ended = self._ended.wait(BATCH_SECONDS)
                rows = self._waiting()
                if not opened.replaces:
                    rows = told.only_new(rows)
                if rows and not self._faulty:
                    opened.log(rows)
                if ended:
                    opened.close()
                    return
        except (Exception, SystemExit) as error:
            self._give_up(class_and_line(error))

    def _waiting(self) -> list[tuple[int, Mapping[str, float]]]:
        rows = []
        with suppress(queue.Empty):
            while True:
                rows.append(self._rows.get_nowait())
        return rows


class Told:
    """What a tracker was told by all attempts, in a small file: the run it calls this one, and of each kind of row the
    highest step. It is written before the tracker is told: a step that was lost in between is told to nobody, and none
    is told twice."""

    def __init__(self, path: Path, done: int) -> None:
        """`done` as in `Tracked`: at 0 nothing was told."""
        self._path = path
        self.run: str | None = None
        self._steps: dict[str, int] = {}
        if done:
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads(path.read_text(encoding="utf-8"))
                self.run, self._steps = content["run"], dict(content["told"])

    def only_new(self, rows: Rows) -> list[tuple[int, Mapping[str, float]]]:
        """The rows that were not told yet; from now on they were."""
        new = []
        for step, values in rows:
            # Rows of a kind begin with the same value: a step's with its epoch, an evaluation's with its loss.
            kind = next(iter(values))
            if step > self._steps.get(kind, 0):
                self._steps[kind] = step
                new.append((step, values))
        if new:
            write_json(self._path, {"run": self.run, "told": self._steps})
        return new


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, without its step."""
    return {
        name: value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


# ── the trackers: each opens a run, or goes on with the one of that name ──────────────────────────────────────────────


def _open_tensorboard(run: Tracked, known: str | None) -> Opened:
    from torch.utils.tensorboard import SummaryWriter

    folder = run.folder / "tensorboard"
    # What an earlier attempt wrote of later steps, which are made again, is not shown any more.
    writer = SummaryWriter(str(folder), purge_step=run.done + 1)
    if run.done == 0:
        writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2)}\n```", 0)

    def log(rows: Rows) -> None:
        for step, values in rows:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        writer.flush()

    return Opened(str(folder), log, writer.close, replaces=True)


def _open_wandb(run: Tracked, known: str | None) -> Opened:
    import wandb

    name = known or secrets.token_hex(4)
    run.folder.mkdir(parents=True, exist_ok=True)
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=name,
        resume="allow",
        config=dict(run.config),
        dir=str(run.folder),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings=wandb.Settings(silent=True, console="off"),
    )

    def log(rows: Rows) -> None:
        for step, values in rows:
            # A step of wandb's own may only rise; evaluations and checkpoints come after their step's row.
            opened.log({**values, "step": step})

    opened.define_metric("*", step_metric="step")
    return Opened(name, log, opened.finish)


def _open_trackio(run: Tracked, known: str | None) -> Opened:
    # Read when it is imported.
    os.environ.setdefault("TRACKIO_DIR", str(run.folder / "trackio"))
    import trackio

    name = known or f"{run.name}-{secrets.token_hex(4)}"
    opened = trackio.init(
        PROJECT, name=name, config=dict(run.config), resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False
    )

    def log(rows: Rows) -> None:
        for step, values in rows:
            opened.log(dict(values), step=step)

    return Opened(name, log, opened.finish)


def _open_mlflow(run: Tracked, known: str | None) -> Opened:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunStatus

    folder = run.folder / "mlflow"
    where = os.environ.get("MLFLOW_TRACKING_URI")
    if where is None:
        folder.mkdir(parents=True, exist_ok=True)
        # Its folder of plain files is not kept up any more.
        where = f"sqlite:///{folder.absolute()}/mlflow.db"
    client = MlflowClient(tracking_uri=where)
    name = known
    if name is None:
        found = client.get_experiment_by_name(PROJECT)
        artifacts = folder.absolute().as_uri() if where.startswith("sqlite:") else None
        experiment = found.experiment_id if found else client.create_experiment(PROJECT, artifact_location=artifacts)
        name = client.create_run(experiment, run_name=run.name).info.run_id
        client.log_batch(name, params=[Param(key, str(value)) for key, value in run.config.items()])
    else:
        client.update_run(name, status=RunStatus.to_string(RunStatus.RUNNING))
    run_id: str = name

    def log(rows: Rows) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for step, values in rows for key, value in values.items()]
        for start in range(0, len(metrics), 1000):  # Its limit for one call.
            client.log_batch(run_id, metrics=metrics[start : start + 1000])

    return Opened(run_id, log, lambda: client.set_terminated(run_id))


OPENERS: Mapping[str, Callable[[Tracked, str | None], Opened]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "trackio": _open_trackio,
    "mlflow": _open_mlflow,
}
