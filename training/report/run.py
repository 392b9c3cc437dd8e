"""A run as its directory tells of it. The launcher's files and the trainer's are read alike; what is not there, is
damaged or is only half written is left out."""

import json
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.errors import InputError
from training.report.heat import Heat
from training.run_directory import RunDirectory, folder_of

ATTEMPTS, EVENTS, PLANS = "run.json", "events.jsonl", "attempt-*/plan.json"
"""The launcher's files in a run directory."""


@dataclass(frozen=True)
class Series:
    """Values of one kind, by optimizer step."""

    steps: array = field(default_factory=lambda: array("d"))
    values: array = field(default_factory=lambda: array("d"))

    def add(self, step: float, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)


@dataclass(frozen=True)
class Attempt:
    """One launch of the run; times are seconds since 1970."""

    number: int
    started: float
    ended: float | None
    kind: str | None
    """Of its verdict; None where it runs, or nobody could say."""
    facts: Mapping[str, Any]
    """All of its entry in run.json."""
    verdict: Mapping[str, Any]
    accounting: Mapping[str, float]
    """Seconds by where they went."""


@dataclass(frozen=True)
class Run:
    """What is known of a run."""

    folder: Path
    options: Mapping[str, Any]
    """Of the latest attempt, by field name of `TrainConfig`."""
    world_size: int | None
    series: Mapping[str, Series]
    """By the names of metrics.jsonl."""
    happened: list[Mapping[str, Any]]
    """Rows of metrics.jsonl that tell of something at a step, and of checkpoints."""
    heat: Heat
    attempts: list[Attempt]
    events: list[Mapping[str, Any]]
    """Of events.jsonl, each with a `time`."""
    hosts: list[tuple[str, int, int | None]]
    """Of the latest attempt: name, ranks and GPUs, in the order of the ranks."""
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The experiment."""
        return self.folder.absolute().name

    def last(self, name: str) -> float | None:
        """The last value of a series."""
        series = self.series.get(name)
        return series.values[-1] if series else None

    @property
    def state(self) -> str:
        """How it stands: by the last attempt's verdict, else by whether there is a summary."""
        if self.attempts and not (self.attempts[-1].kind is None and self.summary):
            return self.attempts[-1].kind or "running, or ended without a verdict"
        return "complete" if self.summary else "not complete"


def find_run(name: str, output_dir: Path) -> Path:
    """The directory of a run, given itself or by the name of an experiment below `output_dir`.

    Raises:
        InputError: there is none of that name, or it is no run's.
    """
    folder = folder_of(name, output_dir, "a run's directory")
    run = RunDirectory(folder)
    if not any(known.exists() for known in (run.metrics, run.config, folder / ATTEMPTS)):
        raise InputError(
            f"{folder}: there is neither metrics.jsonl, config.json nor run.json in it; give a run's directory"
        )
    return folder


def read_run(folder: Path) -> Run:
    """All that the report shows of a run.

    Raises:
        InputError: a file of it may not be read.
    """
    run = RunDirectory(folder)
    try:
        described = _object(run.config)
        series, happened = _metrics(run.metrics)
        world_size = number(described.get("world_size"))
        return Run(
            folder,
            mapping(described.get("config")),
            None if world_size is None else int(world_size),
            series,
            happened,
            _heat(run.rank_times),
            _attempts(folder / ATTEMPTS),
            [row for row in _rows(folder / EVENTS) if number(row.get("time")) is not None],
            _hosts(folder),
            _object(run.summary),
        )
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror or error}; try again") from error


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return None
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """An object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def _object(path: Path) -> Mapping[str, Any]:
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}


def _metrics(path: Path) -> tuple[dict[str, Series], list[Mapping[str, Any]]]:
    series: dict[str, Series] = {}
    happened: list[Mapping[str, Any]] = []
    for row in _rows(path):
        step = number(row.get("step"))
        if step is None:
            continue
        if "event" in row or "checkpoint_bytes" in row:
            happened.append(row)
            continue
        for name, value in row.items():
            if name != "step" and (value := number(value)) is not None:
                series.setdefault(name, Series()).add(step, value)
    return series, happened


def _heat(path: Path) -> Heat:
    heat = Heat()
    for row in _rows(path):
        step, first, seconds = number(row.get("step")), number(row.get("first_rank")), row.get("busy_seconds")
        if step is None or first is None or min(step, first) < 0 or not isinstance(seconds, list):
            continue
        for place, value in enumerate(seconds):
            if (value := number(value)) is not None:
                heat.add(int(step), int(first) + place, value)
    return heat


def _attempts(path: Path) -> list[Attempt]:
    entries = _object(path).get("attempts")
    attempts: list[Attempt] = []
    for entry in map(mapping, entries if isinstance(entries, list) else []):
        which, started = number(entry.get("attempt")), number(entry.get("started"))
        if which is None or started is None:
            continue
        verdict = mapping(entry.get("verdict"))
        spent = {name: number(seconds) for name, seconds in mapping(entry.get("accounting")).items()}
        attempts.append(
            Attempt(
                int(which),
                started,
                number(entry.get("ended")),
                str(verdict["kind"]) if verdict.get("kind") else None,
                entry,
                verdict,
                {name: seconds for name, seconds in spent.items() if seconds is not None},
            )
        )
    return attempts


def _hosts(folder: Path) -> list[tuple[str, int, int | None]]:
    plans = sorted(folder.glob(PLANS))
    hosts = _object(plans[-1]).get("hosts") if plans else None
    found: list[tuple[str, int, int | None]] = []
    for host in hosts if isinstance(hosts, list) else []:
        if isinstance(host, list) and len(host) >= 3 and (ranks := number(host[1])) is not None:
            gpus = number(host[2])
            found.append((str(host[0]), int(ranks), None if gpus is None else int(gpus)))
    return found
