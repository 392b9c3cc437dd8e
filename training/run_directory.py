"""The run directory: where it is, who may name it, and whether what lies in it is the same run.

Training owns `config.json`, `metrics.jsonl`, `checkpoints/` and `summary.json`; whatever else lies there is
left alone."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import TrainConfig
from training.errors import InputError

RUN_DIRECTORY_VARIABLE = "CLUSTER_RUN_DIR"
DEFAULT_EXPERIMENT = "default"
NAME_LIMIT = 128
# What a model's configuration says about the shapes of its weights, by the names of GPT-2 and of the later families.
SHAPE = (
    *("model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
)
NAME = re.compile(r"[A-Za-z0-9_+=@][A-Za-z0-9_+=@.-]*")


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration of the latest attempt."""
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step or evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folders `step-00000008`."""
        return self.root / "checkpoints"

    @property
    def summary(self) -> Path:
        """What came out, once the run is complete."""
        return self.root / "summary.json"


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
    if not name or len(name) > NAME_LIMIT or ".." in name or not NAME.fullmatch(name):
        raise InputError(
            f"--experiment-name {name[: NAME_LIMIT + 1]!r}: 1 to {NAME_LIMIT} letters, digits and . _ - + = @ are "
            f"wanted, with no dot or dash in front, no slash and no `..`; it names a directory below --output-dir"
        )


def check_writable(run: RunDirectory) -> None:
    """Refuse a run directory that cannot be made or written, without making it.

    Raises:
        InputError: names the directory that stands in the way.
    """
    existing = run.root.absolute()
    # Not Path.exists, which raises where a parent may not be looked into.
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"the run directory {run.root} cannot be made: {existing} is not a directory; {_WAY_OUT}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"the run directory {run.root} cannot be written: no permission in {existing}; {_WAY_OUT}")
    for owned in (run.config, run.metrics, run.summary):
        if os.path.exists(owned) and not os.access(owned, os.W_OK):
            raise InputError(f"the run directory {run.root} cannot be written: no permission for {owned}; {_WAY_OUT}")


_WAY_OUT = "choose another --output-dir"


def make_run_directory(run: RunDirectory) -> None:
    """Make the directory, readable by its owner alone: logs and configuration may hold what others should
    not see.

    Raises:
        InputError: it cannot be made.
    """
    check_writable(run)
    try:
        run.root.parent.mkdir(parents=True, exist_ok=True)
        run.root.mkdir(mode=0o700, exist_ok=True)
        run.checkpoints.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(f"the run directory {run.root} cannot be made: {error.strerror}; {_WAY_OUT}") from error


def write_json(path: Path, value: Any) -> None:
    """Write aside and rename, so that a reader never finds half a file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def write_config(run: RunDirectory, config: TrainConfig, architecture: Mapping[str, Any], world_size: int) -> None:
    """Record what this attempt runs, for the reader and for `check_same_run` of the next attempt."""
    identity = run_identity(config, architecture)
    write_json(run.config, {"config": config.to_json(), "identity": identity, "world_size": world_size})


def run_identity(config: TrainConfig, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for a checkpoint to be a part of this run.

    Args:
        config: the resolved configuration.
        architecture: the model's Hugging Face configuration; only the values that shape the weights count.
    """
    return {
        "--model-name": _absolute_if_path(config.model_name),
        "--dataset-name": _absolute_if_path(config.dataset_name),
        "--dataset-subset": config.dataset_subset,
        "--text-column": config.text_column,
        "--seq-length": config.seq_length,
        **{f"the model's {key}": architecture[key] for key in SHAPE if key in architecture},
    }


def check_same_run(run: RunDirectory, config: TrainConfig, architecture: Mapping[str, Any]) -> None:
    """Refuse to resume a run with another model or other data.

    Raises:
        InputError: names the first value that differs.
    """
    if not run.config.exists() or not any(run.checkpoints.glob("step-*")):
        return
    try:
        before = json.loads(run.config.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run.config} cannot be read ({error}); choose another --experiment-name") from error
    now = run_identity(config, architecture)
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise InputError(
                f"{run.root} was started with {name} {before.get(name)}, now {now.get(name)} is asked: give the same "
                f"to resume it, or choose another --experiment-name"
            )


def _absolute_if_path(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name
