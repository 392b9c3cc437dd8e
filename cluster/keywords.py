"""The options of `submit` as keyword arguments, and back to the words of its command line."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from cluster.errors import RequestError, did_you_mean

Text = str | os.PathLike[str]


class SubmitOptions(TypedDict, total=False):
    """What ``python -m cluster submit --help`` lists: dashes are underscores, `forward` is ``-x``.

    Options that take ``NAME=VALUE`` are mappings; there the value None is for a name alone.
    """

    config: Text
    cluster: Literal["auto", "slurm", "local"]
    nodes: int
    gpus: int
    ranks_per_node: int
    hosts: str
    hostfile: Text
    mpirun: Text
    forward: Mapping[str, str | None]
    secret: Sequence[str]
    bind_to: str
    wdir: Text
    output_filename: Text
    nic: str
    ssh: str
    mpirun_arg: Sequence[str]
    stage_env: Text
    restarts: int
    spare_nodes: int
    hang_timeout: int
    experiment_name: str
    output_dir: Text
    notify: Text
    no_check: bool
    prepare_first: bool
    partition: str
    account: str
    qos: str
    time: str
    mem: str
    cpus_per_task: int
    constraint: str
    exclude: str
    nodelist: str
    job_name: str
    mail_type: str
    mail_user: str
    sbatch: Mapping[str, str | None]
    prepare_sbatch: Mapping[str, str | None]


def command_words(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> list[str]:
    """The words by which this parser understands the options, which are named as in its result.

    None, False, defaults, and what the parser does not know are left out.
    """
    words: list[str] = []
    for action in parser._actions:
        value = options.get(action.dest)
        if value is None or value is False or value == action.default or not action.option_strings:
            continue
        option = max(action.option_strings, key=len)
        values = value.items() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
        for one in [True] if action.nargs == 0 else values:
            text = "=".join(map(str, one[: 1 + (one[1] is not None)])) if isinstance(one, tuple) else str(one)
            words += [option] if action.nargs == 0 else [f"{option}={text}"] if option[:2] == "--" else [option, text]
    return words


def check_keywords(options: Mapping[str, Any]) -> None:
    """Raise `RequestError` for an option that `submit` does not take, with what was probably meant."""
    for name in options:
        if name not in SubmitOptions.__annotations__:
            hint = did_you_mean(name, SubmitOptions.__annotations__, "see python -m cluster submit --help")
            raise RequestError(f"unknown option {name}: {hint}")
