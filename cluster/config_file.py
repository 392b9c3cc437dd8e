"""A TOML file of options, and where it meets the command line: both become one list of arguments.

    [cluster]                    the command's own options, by their long names
    nodes = 2
    gpus = 8
    x = ["HF_HOME=/data/hf"]     what may be repeated: a list

    [training]                   those of training.train_llm
    experiment-name = "a"
    lr = 3e-4

The file's come first, so that the command line wins; ``--training.lr 3e-4`` before ``--`` is ``--lr 3e-4`` after it.
What comes out is complete: nothing that runs reads the file again.
"""

import json
import os
from argparse import Action, ArgumentError, Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.errors import ClusterError, RequestError, did_you_mean
from cluster.options import OptionParser, check_words, split_program
from cluster.secret import check_secrets
from cluster.toml_file import read_toml
from cluster.trainer import TRAINER, is_training

CLUSTER, TRAINING = "cluster", "training"
TABLES = (CLUSTER, TRAINING)
OVERRIDE = f"--{TRAINING}."
STEPS, EPOCHS = ("--max-steps",), ("--num-epochs", "--num-train-epochs")
"""Of the trainer: epochs that a later source gives take back the steps of an earlier one."""


class CommandLine(NamedTuple):
    """A command line, read: its options (`config` is the file that it names, or None), what stands after ``--``, and
    all its words with what the file says."""

    options: Namespace
    rest: list[str]
    words: list[str]


def read_command_line(parser: OptionParser, arguments: Sequence[str]) -> CommandLine:
    """The one way from arguments to options, for every command that takes a file of them.

    Raises `RequestError` as `resolve_arguments` does, and where a secret is missing or stands among the words.
    """
    words, file = resolve_arguments(arguments, parser)
    before, rest = split_program(words)
    options = parser.parse_options(before)
    options.config = file
    check_secrets(options.secret, options.forward, words, os.environ)
    return CommandLine(options, rest, words)


class Arguments(NamedTuple):
    """A command's arguments with what the file says, and that file (None where there is none)."""

    resolved: list[str]
    file: str | None


def add_config_options(parser: OptionParser) -> None:
    """The two by which options come from elsewhere; `resolve_arguments` takes them out before the parser comes."""
    config = parser.add_argument_group("from a file")
    config.add_argument(
        "--config", metavar="FILE.toml", help="options in its tables [cluster] and [training]; the command line wins"
    )
    config.add_argument(
        f"{OVERRIDE}NAME", metavar="VALUE", help="the trainer's --NAME, before ' -- ': --training.lr 3e-4"
    )


def resolve_arguments(arguments: Sequence[str], parser: OptionParser) -> Arguments:
    """The arguments without ``--config`` and ``--training.…``: what these say stands where it belongs.

    `parser` checks the file's values as it checks the command line's. After ``--`` a parser without ``--program``
    wants the whole program; where there is none, options of the trainer mean the trainer.

    Raises `RequestError` for a file that cannot be read, an unknown key or a value that its option does not take, and
    where there are options of the trainer and another program.
    """
    check_words(arguments)
    before, program = split_program(list(arguments))
    own, file, overrides = take_config(before)
    tables = read_tables(file) if file else {}
    first = [word for key, value in tables.get(CLUSTER, {}).items() for word in option(parser, file, key, value)]
    trainer = [word for key, value in tables.get(TRAINING, {}).items() for word in trainer_option(file, key, value)]
    command: list[str] = []
    if "--program" in (*first, *own) or "program" not in named_actions(parser):
        if (trainer or overrides) and not program:
            program = ["python", "-m", TRAINER]
        if (trainer or overrides) and not is_training(program):
            given = f"[{TRAINING}] of {file}" if trainer else OVERRIDE + overrides[0][2:]
            raise RequestError(f"{given} is for {TRAINER}, and another program is to run: leave it out")
        command, program = program[:3], program[3:]
    later = [*overrides, *program]
    if gives(later, EPOCHS) and not gives(later, STEPS):
        trainer = [word for word in trainer if not gives([word], STEPS)]
    after = [*command, *trainer, *later]
    resolved = [*first, *own, *(["--", *after] if after else [])]
    check_words(resolved)
    return Arguments(resolved, file)


def take_config(before: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """What stands before ``--`` without the two: the rest, the file of ``--config``, the trainer's options."""
    own: list[str] = []
    overrides: list[str] = []
    file = None
    words = list(before)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name == "--config":
            if not equals and not words:
                raise RequestError("--config: a TOML file is wanted after it")
            file = value if equals else words.pop(0)
        elif name.startswith(OVERRIDE):
            overrides.append("--" + word.removeprefix(OVERRIDE))
            while words and not equals and not is_option(words[0]):
                overrides.append(words.pop(0))
        else:
            own.append(word)
    return own, file, overrides


def is_option(word: str) -> bool:
    """Whether it begins an option, and is no negative number."""
    return word.startswith("-") and not word[1:2].isdecimal()


def gives(arguments: Iterable[str], names: Sequence[str]) -> bool:
    return any(word.partition("=")[0].replace("_", "-") in names for word in arguments)


def read_tables(file: str) -> dict[str, Any]:
    """The file's tables. Raises `RequestError` where it cannot be read, or holds anything but the two."""
    tables = read_toml(file)
    for name, content in tables.items():
        if name not in TABLES:
            what = f"options stand below [{CLUSTER}], those of {TRAINER} below [{TRAINING}]"
            hint = did_you_mean(name, TABLES if isinstance(content, dict) else (), what)
            raise RequestError(f"--config {file}: `{name}` is no table of it: {hint}")
        if not isinstance(content, dict):
            raise RequestError(f"--config {file}: `{name}` = {content!r}: a table [{name}] is wanted")
    return tables


def option(parser: OptionParser, file: str | None, key: str, value: Any) -> list[str]:
    """A key of ``[cluster]`` as arguments, checked by the parser itself."""
    where = f"--config {file}: [{CLUSTER}] {key}"
    actions = named_actions(parser)
    name = key.replace("_", "-")
    action = actions.get(name)
    if action is None:
        raise RequestError(f"{where}: no such option: {did_you_mean(name, actions, f'see {parser.prog} --help')}")
    name = action.option_strings[0]
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise RequestError(f"{where} = {json.dumps(value, default=str)}: true or false is wanted")
        return [name] if value else []
    repeated = isinstance(action.default, list)
    values = value if repeated and isinstance(value, list) else [value]
    if any(isinstance(each, bool) or not isinstance(each, str | int | float) for each in values):
        wanted = "a text, or a list of texts," if repeated else "one value"
        raise RequestError(f"{where} = {json.dumps(value, default=str)}: {wanted} is wanted")
    # Attached, because a value may begin with a dash.
    words = [f"{name}{'=' if name.startswith('--') else ''}{each}" for each in values]
    parser.exit_on_error = False
    try:
        parser.parse_known_args(words)
    except ArgumentError as error:
        raise RequestError(f"{where}: {error.message}") from error
    except ClusterError as error:
        raise RequestError(f"{where}: {error}") from error
    finally:
        parser.exit_on_error = True
    return words


def named_actions(parser: OptionParser) -> Mapping[str, Action]:
    """The parser's options by their names without dashes."""
    found = {name.lstrip("-"): action for action in parser._actions for name in action.option_strings}
    return {name: action for name, action in found.items() if name not in ("h", "help", "config", f"{TRAINING}.NAME")}


def trainer_option(file: str | None, key: str, value: Any) -> list[str]:
    """A key of ``[training]`` as the trainer's arguments; the trainer knows which there are, and checks them itself."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, bool) or not isinstance(each, str | int | float) for each in values) or not values:
        shown = json.dumps(value, default=str)
        raise RequestError(f"--config {file}: [{TRAINING}] {key} = {shown}: one value, or a list of texts, is wanted")
    return [f"--{name}", *map(str, values)] if isinstance(value, list) else [f"--{name}={value}"]
