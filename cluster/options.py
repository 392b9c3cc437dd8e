"""The command lines' common ground: an argument parser that ends with status 64 and says what was probably meant.

argparse, not tyro as in `training`: the front end must start in a few Python start-up times, and importing tyro alone
takes longer than that.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from cluster.environment import VARIABLE_NAME
from cluster.errors import ClusterError, RequestError, did_you_mean
from cluster.rundir import DEFAULT_OUTPUT_DIR
from cluster.terminal import plain

DEFAULT_RESTARTS = 3
"""For our own trainer, which resumes. Another program may start from nothing, so it is launched once."""
DEFAULT_HANG_TIMEOUT = 120
"""Seconds without progress that are never a hang, however fast the steps are."""


class OptionParser(argparse.ArgumentParser):
    """Errors are one line, exit status 64. No abbreviations: a new option must not change what an old script means."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def reworded(
        self, prog: str, usage: str, description: str, epilog: str, shown: Mapping[str, str]
    ) -> "OptionParser":
        """This parser for another command that takes the same options: its help has `shown` of them, in these words."""
        self.prog, self.usage, self.description, self.epilog = prog, usage, description, epilog
        for action in self._actions:
            if action.dest != "help":
                action.help = shown.get(action.dest, argparse.SUPPRESS)
        return self

    def parse_options(self, arguments: list[str]) -> argparse.Namespace:
        """Parse all arguments; an unknown one is an error that names the nearest known option."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            given = unknown[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            hint = did_you_mean(given, known, f"see {self.prog} --help")
            if not given.startswith("-") and " -- " in str(self.usage):
                hint = "the program and its arguments stand after ' -- '"
            self.error(f"unknown option {given}: {hint}")
        return options

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


def check_words(words: Iterable[str]) -> None:
    """Raise `RequestError` for a word that no process can be given, or no file of ours can hold."""
    for word in words:
        if "\0" in word or (not word.isascii() and word != word.encode(errors="replace").decode()):
            raise RequestError(f"the argument {word!r} has a NUL or is not UTF-8: give it without")


def split_program(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options before the first ``--`` and what follows it."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number not below `minimum`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"given {text!r}, wanted a whole number, {minimum} or more")
        return int(text)

    return parse


def add_output_dir(parser: argparse.ArgumentParser) -> None:
    """Where the runs lie that a command looks for."""
    parser.add_argument(
        "--output-dir",
        default=DEFAULT_OUTPUT_DIR,
        metavar="DIR",
        help=f"parent of the run directories (default: {DEFAULT_OUTPUT_DIR})",
    )


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Where to run and how mpirun starts ranks: the same options for `submit` and `launch`."""
    place = parser.add_argument_group("place")
    place.add_argument(
        "--cluster",
        choices=("auto", "slurm", "local"),
        default="auto",
        help="auto: Slurm where there is one, else this machine",
    )
    place.add_argument("--nodes", type=at_least(1), metavar="N", help="nodes; simulated ones on this machine")
    place.add_argument(
        "--ranks-per-node",
        type=at_least(1),
        metavar="N",
        help="ranks on each node (default: its GPUs, or its tasks without GPUs)",
    )
    place.add_argument(
        "-H", "--hosts", metavar="a:8,b:8", help="machines without a scheduler, and ranks on each, over ssh"
    )
    place.add_argument("--hostfile", metavar="FILE", help="the same from a file: 'name slots=8', one a line")
    ranks = parser.add_argument_group("ranks (mpirun's own names)")
    ranks.add_argument(
        "--mpirun", metavar="PATH", help="which mpirun (default: first on PATH, then beside this Python)"
    )
    ranks.add_argument(
        "-x",
        dest="forward",
        type=environment_pair,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="hand this variable to every rank, beside the usual ones",
    )
    ranks.add_argument(
        "--secret",
        type=variable_name,
        action="append",
        default=[],
        metavar="NAME",
        help="the same for one whose value is shown and written nowhere (HF_TOKEN and WANDB_API_KEY always)",
    )
    ranks.add_argument(
        "--bind-to", default="none", metavar="WHAT", help="mpirun's binding: none (default), core, numa, …"
    )
    ranks.add_argument("--wdir", metavar="DIR", help="working directory of the ranks (default: this one)")
    ranks.add_argument(
        "--output-filename",
        metavar="DIR",
        help="directory of the per-rank logs (default: in the attempt's directory)",
    )
    ranks.add_argument("--nic", metavar="NAME", help="network interface for Open MPI, NCCL and gloo alike, such as ib0")
    ranks.add_argument("--ssh", metavar="COMMAND", help="ssh command for --hosts, such as 'ssh -p 2222'")
    ranks.add_argument(
        "--mpirun-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument for mpirun itself: --mpirun-arg=--display-map",
    )
    ranks.add_argument(
        "--stage-env",
        metavar="DIR",
        help="in a Slurm job: copy the program's Python environment into this folder of each node's own disk "
        "first, such as /tmp, and run it from there",
    )
    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--restarts",
        type=at_least(0),
        metavar="N",
        help="launch again at most N times without a new checkpoint in between "
        f"(default: {DEFAULT_RESTARTS} for our trainer, 0 for other programs)",
    )
    faults.add_argument(
        "--spare-nodes",
        type=at_least(0),
        default=0,
        metavar="K",
        help="keep K of the granted nodes back to replace lost ones (submit asks for K more)",
    )
    faults.add_argument(
        "--hang-timeout",
        type=at_least(1),
        default=DEFAULT_HANG_TIMEOUT,
        metavar="SECONDS",
        help=f"seconds without progress that are no hang yet (default {DEFAULT_HANG_TIMEOUT}; "
        "more where steps take longer than a tenth)",
    )
    run = parser.add_argument_group("run directory")
    run.add_argument(
        "--experiment-name",
        metavar="NAME",
        help="default: the trainer's own --experiment-name, else the job's name",
    )
    run.add_argument("--output-dir", metavar="DIR", help=f"parent of the run directory (default: {DEFAULT_OUTPUT_DIR})")
    run.add_argument(
        "--notify",
        metavar="FILE",
        help="tell a webhook of start, fault, requeue and end: its address stands in this file, then headers",
    )


def run(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command's `main`; a `ClusterError` becomes one line on standard error and its exit status.

    A letter that the standard output's encoding lacks (a job that was given ``LANG=en_US``) is printed as ``?``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return main(arguments)
    except ClusterError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone: nothing more to say, nothing to flush
        return 128 + signal.SIGPIPE


def environment_pair(text: str) -> tuple[str, str | None]:
    """``NAME`` or ``NAME=VALUE`` of ``-x``."""
    name, equals, value = text.partition("=")
    if not VARIABLE_NAME.fullmatch(name):
        raise RequestError(f"-x {name!r}: wanted NAME or NAME=VALUE")
    return name, value if equals else None


def variable_name(text: str) -> str:
    """An argparse type: ``NAME`` of ``--secret``."""
    if not VARIABLE_NAME.fullmatch(text):
        raise RequestError(f"--secret {text.partition('=')[0]!r}: wanted the NAME of a variable, without its value")
    return text
