"""The run directory: where it is, who may name it, and whether what lies in it is the same run.

Training owns `config.json`, `metrics.jsonl`, `rank_times.jsonl`, `checkpoints/`, `summary.json`, `trackers/`, `export/`
and `report.html`; whatever else lies there is left alone."""

import difflib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from training.config import TrainConfig, option_name
from training.errors import InputError
from training.manifest import step_folders
from training.revision import git_revision
from training.whole_file import write_json

RUN_DIRECTORY_VARIABLE = "CLUSTER_RUN_DIR"
DEFAULT_EXPERIMENT = "default"
NAME_LIMIT = 128
CONTENT = "a dataset of fingerprint"
# Options that name the run, that `check_same_run` compares, or that only stand for others.
SAID_ELSEWHERE = ("experiment_name", "output_dir", "model_name", "dataset_name", "preset", "config")
# What a model's configuration says about the shapes of its weights, by the names of GPT-2 and of the later families.
SHAPE = (
    *("model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
)
# The launcher's rule for the same name.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,127}")
_WAY_OUT = "choose another --output-dir"


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration of the latest attempt that had steps to make."""
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step or evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def rank_times(self) -> Path:
        """How long each rank was busy with a step, one JSON object per logged step."""
        return self.root / "rank_times.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folders `step-00000008`."""
        return self.root / "checkpoints"

    @property
    def summary(self) -> Path:
        """What came out, once the run is complete."""
        return self.root / "summary.json"

    @property
    def trackers(self) -> Path:
        """What the trackers of --report-to write, where any were asked for."""
        return self.root / "trackers"

    @property
    def export(self) -> Path:
        """The model as a Hugging Face folder, where it was exported."""
        return self.root / "export"

    @property
    def report(self) -> Path:
        """What the run did, as a page."""
        return self.root / "report.html"


def folder_of(name: str, output_dir: Path, wanted: str) -> Path:
    """The folder that is meant: given itself, or by the name of an experiment below `output_dir`.

    Raises:
        InputError: there is none; the nearest name is told, or else what is `wanted`.
    """
    for path in (Path(name), output_dir / name):
        if name.strip() and path.is_dir():
            return path
    near = difflib.get_close_matches(name, [path.name for path in output_dir.glob("*/")], n=1)
    hint = f": did you mean {near[0]}?" if near else f"; give {wanted} (--output-dir says where runs lie)"
    raise InputError(f"{name!r}: no such folder, and no run of that name in {output_dir}{hint}")


def run_directory(config: TrainConfig, environ: Mapping[str, str]) -> RunDirectory:
    """Where this run lies; touches no disk.

    Raises:
        InputError: the experiment name cannot be a directory's name.
    """
    if config.experiment_name is None and environ.get(RUN_DIRECTORY_VARIABLE):
        return RunDirectory(Path(environ[RUN_DIRECTORY_VARIABLE]))
    name = DEFAULT_EXPERIMENT if config.experiment_name is None else config.experiment_name
    check_experiment_name(name)
    return RunDirectory(config.output_dir / name)


def check_experiment_name(name: str) -> None:
    """Refuse a name that is no plain file name.

    Raises:
        InputError: names the rule that is broken.
    """
    if ".." in name or not NAME.fullmatch(name):
        raise InputError(
            f"--experiment-name {name[: NAME_LIMIT + 1]!r}: 1 to {NAME_LIMIT} letters, digits and . _ - + = @ are "
            f"wanted, a letter, digit or _ first, no slash and no `..`; it names a directory below --output-dir"
        )


def nearest_existing(path: Path) -> Path:
    """The path, or what there is of the folders above it."""
    existing = path.absolute()
    # Not Path.exists, which raises where a parent may not be looked into.
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    return existing


def check_writable(run: RunDirectory) -> None:
    """Refuse a run directory that cannot be made or written, without making it.

    Raises:
        InputError: names the directory that stands in the way.
    """
    existing = nearest_existing(run.root)
    if not existing.is_dir():
        raise InputError(f"the run directory {run.root} cannot be made: {existing} is not a directory; {_WAY_OUT}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"the run directory {run.root} cannot be written: no permission in {existing}; {_WAY_OUT}")
    for owned in (run.config, run.metrics, run.rank_times, run.summary):
        if os.path.exists(owned) and not os.access(owned, os.W_OK):
            raise InputError(f"the run directory {run.root} cannot be written: no permission for {owned}; {_WAY_OUT}")


def check_private(directory: Path) -> None:
    """Refuse a directory that is a link, another user's, or open for others to write.

    Raises:
        InputError: it says which.
    """
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        mode = stat.filemode(found.st_mode)
        raise InputError(
            f"{directory} ({mode}, of user {found.st_uid}) is no directory that this user alone can write: what lies "
            f"in it is not believed; {_WAY_OUT}"
        )


def make_run_directory(run: RunDirectory) -> None:
    """Make the directory, readable by its owner alone: logs and configuration may hold what others should
    not see. From here on this process makes files for their owner alone.

    Raises:
        InputError: it cannot be made, or is there and others may have filled it.
    """
    check_writable(run)
    os.umask(0o077)
    try:
        run.root.parent.mkdir(parents=True, exist_ok=True)
        run.root.mkdir(exist_ok=True)
        run.checkpoints.mkdir(exist_ok=True)
        for directory in (run.root, run.checkpoints):
            check_private(directory)
            directory.chmod(0o700)
    except OSError as error:
        raise InputError(f"the run directory {run.root} cannot be made: {error.strerror}; {_WAY_OUT}") from error


def write_config(
    run: RunDirectory, config: TrainConfig, architecture: Mapping[str, Any], fingerprint: str, world_size: int
) -> None:
    """Record what this attempt runs, and by which code, for the reader and for `check_same_run` of the next attempt."""
    identity = run_identity(config, architecture, fingerprint)
    revision = git_revision(Path.cwd())
    write_json(
        run.config,
        {"config": config.to_json(), "identity": identity, "world_size": world_size, "revision": revision},
    )


def run_identity(config: TrainConfig, architecture: Mapping[str, Any], fingerprint: str | None) -> dict[str, Any]:
    """What must be equal for a checkpoint to be a part of this run.

    Args:
        config: the resolved configuration.
        architecture: the model's Hugging Face configuration; only the values that shape the weights count.
        fingerprint: of the corpus; None where it was not read.
    """
    return {
        "--model-name": _absolute_if_path(config.model_name),
        "--dataset-name": _absolute_if_path(config.dataset_name),
        "--dataset-subset": config.dataset_subset,
        "--text-column": config.text_column,
        "--seq-length": config.seq_length,
        # Another split would train on what was held out, another seed on some sequences twice in an epoch.
        "--validation-split-percentage": config.validation_split_percentage,
        "--seed": config.seed,
        CONTENT: fingerprint and fingerprint[:12],
        **{f"the model's {key}": architecture[key] for key in SHAPE if key in architecture},
    }


def check_same_run(
    run: RunDirectory, config: TrainConfig, architecture: Mapping[str, Any], fingerprint: str | None = None
) -> None:
    """Refuse to resume a run with another model, other data, or the data split or ordered otherwise.

    Args:
        run, config: the run.
        architecture: as `run_identity` takes it.
        fingerprint: of the corpus; None does not compare it.

    Raises:
        InputError: names the first value that differs.
    """
    if not run.config.exists() or not step_folders(run.checkpoints):
        return
    try:
        before = json.loads(run.config.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run.config} cannot be read ({error}); choose another --experiment-name") from error
    now = run_identity(config, architecture, fingerprint)
    for name in {**before, **now}:
        if name == CONTENT and fingerprint is None:
            continue
        if before.get(name) != now.get(name):
            raise InputError(
                f"{run.root} was started with {name} {before.get(name)}, now {now.get(name)} is asked: give the same "
                f"to resume it, or choose another --experiment-name"
            )


def read_config(run: RunDirectory) -> dict[str, Any]:
    """What `write_config` recorded of the latest attempt; empty where there is nothing that can be read."""
    try:
        content = json.loads(run.config.read_text(encoding="utf-8"))
        return content if isinstance(content["config"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def batch_size_before(run: RunDirectory) -> int | None:
    """The latest attempt's --batch-size, where there is a checkpoint to go on from; else None: the model or the
    sequence may be another now."""
    if not step_folders(run.checkpoints):
        return None
    found = read_config(run).get("config", {}).get("batch_size")
    return found if isinstance(found, int) else None


def changed_options(run: RunDirectory, config: TrainConfig, world_size: int) -> str | None:
    """What the latest attempt was given otherwise, as `--lr 0.001 → 0.01`; None where nothing or no attempt."""
    latest = read_config(run)
    before = {**latest, **latest.get("config", {})}
    now = {**config.to_json(), "world_size": world_size}
    names = [field.name for field in fields(TrainConfig) if field.name not in SAID_ELSEWHERE]
    changes = [
        f"{label} {before[name]} → {now[name]}"
        for name, label in [*((name, option_name(name)) for name in names), ("world_size", "ranks")]
        if name in before and before[name] != now[name]
    ]
    return ", ".join(changes) or None


def _absolute_if_path(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name
