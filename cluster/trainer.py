"""Our own trainer, as far as the launcher knows it: its modules, its files, its options that name the run."""

from collections.abc import Sequence
from pathlib import Path

from cluster.toml_file import read_toml

TRAINER, PREPARATION = "training.train_llm", "training.prepare"
"""The module that trains, and the one that makes its tokens ahead, which takes the same options."""
NAMING_OPTIONS = {
    "experiment_name": ("--experiment-name", "-e"),
    "output_dir": ("--output-dir", "--save-dir"),
}
"""Those that name the run directory."""
DEFAULT_EXPERIMENT = "gpt2_mpi"
METRICS_FILE, CONFIG_FILE, SUMMARY_FILE, REPORT_FILE = "metrics.jsonl", "config.json", "summary.json", "report.html"
"""In the run directory, beside ours."""


def is_training(program: Sequence[str]) -> bool:
    """Whether the program is our own trainer, or takes its options: ``python -m training.train_llm …``."""
    return len(program) > 2 and program[1] == "-m" and program[2] in (TRAINER, PREPARATION)


def is_trainer(program: Sequence[str]) -> bool:
    """Whether the program is ``python -m training.train_llm``."""
    return is_training(program) and program[2] == TRAINER


def naming_settings(program: Sequence[str], wdir: str = ".") -> dict[str, str]:
    """`experiment_name` and `output_dir` as our trainer will read them in `wdir`: TOML file first, command line over
    it."""
    if not is_training(program):
        return {}
    arguments = program[3:]
    config = option_value(arguments, "--config")
    file = read_toml(str(Path(wdir, config))) if config else {}
    # A file for a whole run has the trainer's options in a table.
    own = file.get("training", {}) if file.keys() & {"cluster", "training"} else file
    settings = {name.replace("-", "_"): value for name, value in own.items()}
    for name, flags in NAMING_OPTIONS.items():
        if value := option_value(arguments, *flags):
            settings[name] = value
    return {name: str(settings[name]) for name in NAMING_OPTIONS if settings.get(name)}


def name_run_directory(program: Sequence[str], run_dir: Path) -> list[str]:
    """The program, told its run directory in full if it is our trainer (the last of a repeated option wins)."""
    if not is_training(program):
        return list(program)
    named = option_value(program[3:], *NAMING_OPTIONS["experiment_name"])
    name = [] if named else ["--experiment-name", run_dir.name]
    return [*program, *name, "--output-dir", str(run_dir.parent)]


def default_experiment(program: Sequence[str]) -> str | None:
    """The preset's name, so that a trial run does not take the place of the real one; None for another program."""
    return (option_value(program, "--preset") or DEFAULT_EXPERIMENT) if is_training(program) else None


def option_value(arguments: Sequence[str], *flags: str) -> str | None:
    """Value of the last ``--flag value`` or ``--flag=value``; dashes and underscores inside a flag are the same."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        flag, equals, attached = argument.partition("=")
        if flag[:2] + flag[2:].replace("_", "-") in flags:
            value = attached if equals else following
    return value
