"""The configuration of a training run: preset, then TOML file, then command line, the later ones winning.

This file imports nothing heavy, so that a wrong option is refused in a fraction of a second.
"""

import contextlib
import difflib
import io
import math
import re
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import tyro
from tyro.conf import arg

from training.errors import InputError
from training.interval import parse_interval
from training.presets import PRESETS

TRAINER = "python -m training.train_llm"

PresetName = Literal["demo", "smoke"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio", "mlflow"]
assert set(get_args(PresetName)) == set(PRESETS)

DEEPEST = 100
"""Dots between two equals signs of a line: over a deep `a.a.a…` Python's reader takes gigabytes (3.11)."""

Options = TypeVar("Options")
"""A frozen dataclass whose fields are the options of a command."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a causal language model with DDP or FSDP, under mpirun, torchrun, srun or alone.

    python -m training.train_llm --preset demo --experiment-name demo

    mpirun -np 4 python -m training.train_llm --config train.toml --lr 1e-4

    An option given twice counts once, as given last. Options may be written with dashes or underscores.
    """

    experiment_name: Annotated[str | None, arg(aliases=["-e"], metavar="NAME")] = None
    """Name of the run: its directory is OUTPUT_DIR/NAME, and the same name again resumes it. Without it the
    run directory is $CLUSTER_RUN_DIR where a launcher set that, else OUTPUT_DIR/default."""

    dataset_name: Annotated[str, arg(aliases=["-d"], metavar="NAME|PATH")] = "tatsu-lab/alpaca"
    """A dataset of the Hugging Face hub, a local json, jsonl, csv, parquet or txt file, a folder of such
    files, a folder written by save_to_disk, or `demo`, which is built in."""

    dataset_subset: Annotated[str | None, arg(metavar="NAME")] = None
    """The configuration of a hub dataset that has several."""

    text_column: Annotated[str | None, arg(metavar="COLUMN")] = None
    """The column to train on. Without it: `text`, else `instruction`, `input` and `output` in the alpaca
    prompt."""

    streaming: bool = False
    """Read a hub dataset that is too large to download as a stream, until there are --max-train-tokens of it."""

    max_train_tokens: Annotated[int | None, arg(metavar="N")] = None
    """Train on the first N tokens of the training documents. Without it: on all."""

    validation_split_percentage: Annotated[float, arg(metavar="PERCENT")] = 5.0
    """Share of the documents held out for evaluation where the dataset has no validation or test split of
    its own."""

    model_name: Annotated[str, arg(aliases=["-m"], metavar="NAME|PATH")] = "openai-community/gpt2"
    """A causal language model of the hub, a local model folder (with or without weights), or `demo`, a small
    GPT-2."""

    pretrained: bool = False
    """Insist on starting from the model's weights. Neither this nor --from-scratch: the weights if it has
    any."""

    from_scratch: bool = False
    """Insist on starting from random initialisation."""

    output_dir: Annotated[Path, arg(aliases=["--save-dir"], metavar="DIR")] = Path("outputs")
    """Where run directories and the cache of tokens (.cache) lie; every rank must see it."""

    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the initialisation, of the order of the data and, together with the rank, of dropout."""

    num_epochs: Annotated[float, arg(aliases=["--num-train-epochs"], metavar="N")] = 3.0
    """Passes over the training data; a fraction is allowed."""

    max_steps: Annotated[int | None, arg(metavar="N")] = None
    """Optimizer steps; overrides --num-epochs. A preset's or a file's is taken back where a later one, or the
    command line, gives --num-epochs alone."""

    lr: Annotated[float, arg(aliases=["--learning-rate"], metavar="RATE")] = 5e-5
    """Peak learning rate. From random initialisation a higher one serves better: 6e-4 for GPT-2 with 124M
    parameters."""

    lr_scheduler: Annotated[Literal["cosine", "linear", "constant"], arg(aliases=["--lr-scheduler-type"])] = "cosine"
    """How the rate falls after the warm-up: to zero at the last step by a cosine or a line, or not at all."""

    warmup_steps: Annotated[int | None, arg(metavar="N")] = None
    """Optimizer steps over which the rate rises from zero. Without it: 3% of the steps."""

    weight_decay: Annotated[float, arg(metavar="X")] = 0.1
    """Decoupled weight decay of AdamW on matrices; biases and norms have none."""

    max_grad_norm: Annotated[float, arg(metavar="X")] = 1.0
    """Gradients are scaled down to this norm where theirs is larger; 0 does not clip."""

    max_skipped_steps: Annotated[int, arg(metavar="N")] = 0
    """Steps of the whole run whose update is skipped where the loss or gradient is not finite; at the next one, or
    without this option at the first, the run stops before the update."""

    batch_size: Annotated[
        int | Literal["auto"], arg(aliases=["-b", "--per-device-train-batch-size"], metavar="N|auto")
    ] = 8
    """Sequences per rank in one forward pass; auto: as many as fit the first rank's GPU;
    a run that goes on keeps what it has."""

    gradient_accumulation_steps: Annotated[int, arg(metavar="N")] = 1
    """Forward passes per optimizer step."""

    seq_length: Annotated[int, arg(aliases=["-s"], metavar="TOKENS")] = 1024
    """Tokens per sequence; at most what the model takes."""

    packing: Literal["concatenated", "varlen"] = "concatenated"
    """Documents that share a sequence: concatenated: each sees those before it, as GPT-2 was trained; varlen:
    attention and positions stay within each document."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What several ranks hold: ddp: each the whole model, the faster way where it fits; fsdp: each a slice of
    weights, gradients and optimizer state."""

    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which several ranks add up their gradients; bfloat16 halves the bytes between them, and
    rounds every gradient to 8 significant bits."""

    ddp_bucket_cap_mb: Annotated[int, arg(metavar="MIB")] = 25
    """Gradients that DDP adds up in one message: small ones begin early in the backward pass, large ones use
    a network better."""

    ddp_overlap: Literal["auto", "on", "off"] = "auto"
    """Whether DDP exchanges gradients while the backward pass still runs, or all together after it. auto: on, but
    not where NVLink joins all ranks: there it slows the backward pass by more than the exchange takes alone."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: the GPUs, and the CPU where none was granted. GPUs that were granted but torch cannot see are an
    error."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward pass; auto: bfloat16 (autocast) on GPUs, float32 on CPUs.
    Weights and optimizer state are always float32."""

    kernels: Literal["auto", "fused", "torch"] = "auto"
    """fused: forward and backward pass of a GPT-2 by kernels of our own, on GPUs in bfloat16: the fastest, from the
    first step on. torch: the model's own forward. auto: fused where they fit and --compile is not given."""

    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Record a step's passes by the fused kernels once and replay them, to the same bits: faster, most of all where a
    pass has few tokens and the GPU waits for Python. auto: where memory suffices, and not with --ddp-overlap on."""

    compile: bool = False
    """Compile the model's own forward with torch.compile: slower to start, faster steps."""

    deterministic: bool = False
    """Use only GPU kernels that give the same sums every time, so that a resumed run repeats the undisturbed one
    to the last bit there too; slower. On CPUs that is always so."""

    log_freq: Annotated[int, arg(aliases=["--logging-steps"], metavar="STEPS")] = 1
    """Steps between rows of metrics.jsonl. Printed lines are limited by time instead."""

    eval_freq: Annotated[int, arg(aliases=["--eval-steps"], metavar="STEPS")] = 100
    """Steps between evaluations on the held-out documents; 0: only at the end."""

    max_eval_samples: Annotated[int, arg(metavar="N")] = 512
    """Held-out sequences of one evaluation, at most, over all ranks: the first ones, whatever the batch size
    and the number of ranks."""

    ckpt_freq: Annotated[str, arg(aliases=["--save-steps"], metavar="STEPS|TIME|auto")] = "500"
    """Between checkpoints: steps (500), a time (10m; s and h too), or auto: as often as pays, √(2 · cost of a
    save · --mtbf-hours). 0: only at the end."""

    keep_checkpoints: Annotated[int, arg(aliases=["--save-total-limit"], metavar="N")] = 2
    """The last N checkpoints are kept, and besides them the one with the lowest held-out loss."""

    mtbf_hours: Annotated[float | None, arg(metavar="HOURS")] = None
    """Mean time between faults of the whole run, for --ckpt-freq auto. Without it: 8 hours at 1024 ranks, and
    in proportion to their number."""

    num_workers: Annotated[int, arg(metavar="N")] = 0
    """Threads per rank that read batches ahead. 0 reads in the training thread, which costs well under 1 ms a batch
    where the file system is fast or the tokens are in memory."""

    report_to: Annotated[tuple[TrackerName, ...], arg(metavar="TRACKER …")] = ("none",)
    """Trackers that also get the rows of metrics.jsonl: tensorboard, wandb, trackio, mlflow; several may be named. They
    write below the run directory, and to a server only where their own variables say so."""

    report_interval: Annotated[float | None, arg(metavar="MINUTES")] = None
    """Minutes between two writings of RUN/report.html, by a process beside the training; the last at the end. 0: none.
    Without it: 5 where the extra `report` is installed, else none."""

    preset: PresetName | None = None
    """Defaults for a purpose: `demo` visibly trains a small GPT-2 on the built-in data in minutes on two CPU
    cores, `smoke` shows in half a minute that everything works. What the file or the command line says still
    wins."""

    config: Annotated[Path | None, arg(metavar="FILE.toml")] = None
    """A TOML file of these options, by the same names; of one for a whole run, with a table [cluster], the table
    [training]."""

    def to_json(self) -> dict[str, Any]:
        """The options by field name, as JSON has them: paths as text, several values as a list."""
        return {name: _as_json(value) for name, value in asdict(self).items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def config_from_argv(argv: Sequence[str], prog: str = TRAINER, about: str | None = None) -> TrainConfig:
    """The resolved configuration of a command line.

    `--help` prints the options below what the program is `about`, and raises SystemExit(0), as everywhere.

    Raises:
        InputError: an unknown option or key, a value of the wrong kind or out of range, an unreadable file.
    """
    given = parse_options(argv, prog, TrainConfig, TrainConfig(), about)
    layers: dict[str, Any] = dict(PRESETS[given.preset]) if given.preset else {}
    if given.config is not None:
        from_file = read_toml(given.config)
        if "preset" in from_file and given.preset is None:
            layers = dict(PRESETS[from_file["preset"]])
        layers = _below(from_file, layers) | from_file
    layers = _below([name for name in ("num_epochs", "max_steps") if _is_given(name, argv)], layers)
    config = parse_options(argv, prog, TrainConfig, replace(TrainConfig(), **layers)) if layers else given
    check_values(config)
    return config


def _below(upper: Collection[str], lower: dict[str, Any]) -> dict[str, Any]:
    """What stays of a lower layer: not its steps, where the upper one says how many epochs and not how many
    steps."""
    if "num_epochs" in upper and "max_steps" not in upper:
        return {name: value for name, value in lower.items() if name != "max_steps"}
    return lower


def _is_given(name: str, argv: Sequence[str]) -> bool:
    """Whether the command line has this option, also where its value is the default."""
    return any(word.split("=")[0].replace("_", "-") in _spellings(name) for word in argv)


def parse_options(
    argv: Sequence[str], prog: str, kind: type[Options], defaults: Options | None = None, about: str | None = None
) -> Options:
    """The options of a command line; `--help` prints them and raises SystemExit(0).

    Args:
        argv: the command line, without the program.
        prog: the program, for the messages.
        kind: the options and what they say about themselves.
        defaults: what is not given; without it those of `kind`.
        about: what the program does; without it what `kind` says.

    Raises:
        InputError: an unknown option, one that is missing, or a value of the wrong kind.
    """
    printed = io.StringIO()
    # tyro draws by what the standard output is: as for a file, without colours, also on a terminal.
    shown = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding)
    more: dict[str, Any] = {} if defaults is None else {"default": defaults}
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(shown):
            options, unknown = tyro.cli(
                kind, prog=prog, args=list(argv), return_unknown_args=True, description=about, **more
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            shown.seek(0)
            print(shown.read(), end="")
            raise
        raise InputError(_one_line(printed.getvalue())) from None
    if unknown:
        raise InputError(_unknown_option(unknown[0].split("=")[0], prog, kind))
    return options


def _unknown_option(option: str, prog: str, kind: type[Any]) -> str:
    if not option.startswith("-"):
        return f"{option!r} is no option: every value needs the option it belongs to; see `{prog} --help`"
    known = [name for field in fields(kind) for name in _spellings(field.name, kind)]
    close = difflib.get_close_matches(option.replace("_", "-"), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "there is nothing like it;"
    return f"unknown option {option}: {hint} see `{prog} --help`"


def _spellings(name: str, kind: type[Any] = TrainConfig) -> list[str]:
    """Every way to write an option on the command line, the field's own name first."""
    hints = kind.__annotations__[name]
    aliases = [alias for extra in getattr(hints, "__metadata__", ()) for alias in getattr(extra, "aliases", None) or ()]
    return [option_name(name), *aliases]


def option_name(field: str) -> str:
    """An option as the command line has it, of the field that keeps it."""
    return "--" + field.replace("_", "-")


def _one_line(box: str) -> str:
    """The sentence inside the box that tyro prints, without the box, the help text below it and Python's
    jargon."""
    lines: list[str] = []
    printed = [line for line in box.splitlines() if line.strip()]
    # Where only ASCII can be printed the box has no sides, and begins with its title and a line below that.
    for line in printed if "╭" in box else printed[2:]:
        text = line.strip(" │|")
        if (text.startswith(("─", "╰")) or set(text) == {"-"}) and lines:
            break
        if text and not text.startswith(("╭", "╰", "─")):
            lines.append(text)
    sentence = " ".join(lines)
    sentence = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number", sentence)
    sentence = re.sub(
        r"no type matching INT\|\{(\w+)\} could be instantiated from \[(.*?)\].*",
        r"\2 is not a whole number, nor \1",
        sentence,
    )
    sentence = re.sub(r"no type matching \{None\}\|INT .*? from \[(.*?)\].*", r"\1 is not a whole number", sentence)
    sentence = re.sub(r"no type matching \{None\}\|FLOAT .*? from \[(.*?)\].*", r"\1 is not a number", sentence)
    sentence = re.sub(r"Missing from (.*?): (\S+) .*", r"\2 is missing; see `\1 --help`", sentence)
    sentence = re.sub(r"could not convert string to float: (.*)", r"\1 is not a number", sentence)
    return sentence or "the command line cannot be read; see --help"


def read_toml(path: Path) -> dict[str, Any]:
    """The options of a TOML file by field name; keys may be written with dashes or underscores.

    A file for a whole run has two tables: [training] is read, and [cluster] left to the front end.

    Raises:
        InputError: no such file, no TOML, an unknown key, or a value of the wrong kind.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if any(part.count(".") > DEEPEST for line in text.splitlines() for part in line.split("=")):
            raise ValueError(f"a line with more than {DEEPEST} dots")
        table = tomllib.loads(text)
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}; give a TOML file that can be read") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {path}: not TOML: {error}") from error
    if {"cluster", "training"} & table.keys():
        if stray := [key for key in table if key not in ("cluster", "training")]:
            raise InputError(f"--config {path}: `{stray[0]}` stands outside of [cluster] and [training]: put it in one")
        table = table.get("training", {})
        if not isinstance(table, dict):
            raise InputError(f"--config {path}: `training` = {table!r}: a table [training] is wanted")
    return {_known_key(key, path): _typed(key, value, path) for key, value in table.items()}


def _known_key(key: str, path: Path) -> str:
    name = key.replace("-", "_")
    known = [field.name for field in fields(TrainConfig) if field.name != "config"]
    if name in known:
        return name
    for field in known:
        if option_name(name) in _spellings(field):
            return field
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
    raise InputError(f"--config {path}: unknown key `{key}`: {hint}")


def _typed(key: str, value: Any, path: Path) -> Any:
    """The value as the field's type; goes through the command line's own parser, so that one rule serves
    both."""
    name = _known_key(key, path)
    if isinstance(value, bool):
        if TrainConfig.__annotations__[name] is not bool:
            raise InputError(f"--config {path}: `{key}` = {str(value).lower()}: a value is wanted, not true or false")
        return value
    several = isinstance(getattr(TrainConfig(), name), tuple)
    if several and isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        words = [option_name(name), *value]
    elif TrainConfig.__annotations__[name] is bool or not isinstance(value, str | int | float):
        wanted = "true or false" if TrainConfig.__annotations__[name] is bool else "one value"
        wanted = "a name, or a list of names," if several else wanted
        raise InputError(f"--config {path}: `{key}` = {value!r}: {wanted} is wanted")
    else:
        words = [f"{option_name(name)}={value}"]
    try:
        return getattr(parse_options(words, "train_llm", TrainConfig, TrainConfig()), name)
    except InputError as error:
        raise InputError(f"--config {path}: {error}") from error


MINIMUM: Mapping[str, float] = {
    "seed": 0, "max_steps": 1, "warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 0, "batch_size": 1,
    "gradient_accumulation_steps": 1, "seq_length": 2, "log_freq": 1, "eval_freq": 0, "max_eval_samples": 1,
    "keep_checkpoints": 1, "num_workers": 0, "max_skipped_steps": 0, "ddp_bucket_cap_mb": 1,
    "max_train_tokens": 1, "report_interval": 0,
}  # fmt: skip


def check_at_least(options: Any, least: Mapping[str, float]) -> None:
    """Refuse numbers below these, which stand by field name; what is not given, or no number, may be anything.

    Raises:
        InputError: names the option, its value and what is allowed.
    """
    for name, minimum in least.items():
        value = getattr(options, name)
        if isinstance(value, int | float) and value < minimum:
            raise InputError(f"{option_name(name)} {value}: at least {minimum} is wanted")


def check_values(config: TrainConfig) -> None:
    """Refuse values that no run can use.

    Raises:
        InputError: names the option, its value and what is allowed.
    """
    for name, value in asdict(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{option_name(name)} {value}: a finite number is wanted")
        if isinstance(value, str | Path) and not str(value).strip():
            raise InputError(f"{option_name(name)} is empty: a value is wanted, or leave the option out")
    check_at_least(config, MINIMUM)
    if config.batch_size == "auto" and (config.strategy == "fsdp" or config.device == "cpu"):
        # FSDP's ranks compute together: the first one's memory cannot be tried alone.
        what = "--strategy fsdp" if config.strategy == "fsdp" else "--device cpu"
        raise InputError(f"--batch-size auto: not with {what}; give a number")
    for name in ("lr", "num_epochs"):
        if getattr(config, name) <= 0:
            raise InputError(f"{option_name(name)} {getattr(config, name)}: a number above 0 is wanted")
    if config.mtbf_hours is not None and config.mtbf_hours <= 0:
        raise InputError(f"--mtbf-hours {config.mtbf_hours}: a number above 0 is wanted")
    parse_interval(config.ckpt_freq)
    if not config.report_to or ("none" in config.report_to and len(set(config.report_to)) > 1):
        given = " ".join(config.report_to)
        raise InputError(f"--report-to {given}".rstrip() + ": none alone, or one or more names of trackers are wanted")
    if not 0 <= config.validation_split_percentage < 100:
        raise InputError(
            f"--validation-split-percentage {config.validation_split_percentage}: at least 0 and below 100 is wanted"
        )
    if config.streaming and config.max_train_tokens is None:
        raise InputError(
            "--streaming reads a dataset that is too large to download: give --max-train-tokens N, how many tokens of "
            "it to train on"
        )
    if config.seed >= 2**63:
        raise InputError(f"--seed {config.seed}: below 2**63 is wanted")
    if config.pretrained and config.from_scratch:
        raise InputError(
            "--pretrained and --from-scratch contradict each other: give one, or neither to start from the weights "
            "where there are any (--no-pretrained and --no-from-scratch take back what a file says)"
        )
