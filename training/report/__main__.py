"""Write what a run did as one page, or lay several runs over one another.

    python -m training.report outputs/a                 # outputs/a/report.html
    python -m training.report a b c --output compare.html
    python -m training.report a --png pictures/

The page needs no network and no other file. Exit status: 0 it is written, 64 the request is wrong.
"""

import importlib.util
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from training.command import run_command
from training.config import TrainConfig, parse_options
from training.errors import InputError
from training.live_report import NEEDS
from training.run_directory import RunDirectory
from training.whole_file import write_whole

PROG = "python -m training.report"


@dataclass(frozen=True)
class ReportOptions:
    """Write what a run did as one page that needs nothing else; several runs lie over one another.

    python -m training.report outputs/a

    python -m training.report a b c --output compare.html

    python -m training.report a --png pictures/
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")] = ()
    """A run's directory, or the name of an experiment below --output-dir; several are compared."""

    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE.html")] = None
    """The page to write, over one that is there. Without it: RUN/report.html, and of several runs report.html here."""

    png: Annotated[Path | None, arg(metavar="DIR")] = None
    """Write the plots as pictures into this folder, and no page."""

    output_dir: Annotated[Path, arg(metavar="DIR")] = TrainConfig.output_dir
    """Where the directories of experiments lie."""


def main(argv: Sequence[str]) -> int:
    """Write what the command line asks for; the process's exit status."""

    def work() -> None:
        for path in report(parse_options(argv, PROG, ReportOptions)):
            print(path)

    return run_command(work, "nothing was written")


def report(options: ReportOptions) -> list[Path]:
    """Write the page or the pictures; their paths.

    Raises:
        InputError: there is no such run, what draws is not installed, or a file cannot be written.
    """
    if not options.runs:
        raise InputError(f"no run was given: a run's directory or the name of an experiment is wanted; `{PROG} --help`")
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise InputError(f"{' and '.join(missing)} not installed: pip install 'slurm-mpi-train[report]'")

    from training.report.charts import figures_of, figures_together
    from training.report.run import find_run, read_run

    if options.png is not None and options.output is not None:
        raise InputError("--output and --png: the page or the pictures; give one of them")
    folders = [find_run(name, options.output_dir) for name in options.runs]
    runs = [read_run(folder) for folder in folders]
    now = time.time()
    path = options.output or (RunDirectory(folders[0]).report if len(folders) == 1 else Path("report.html"))
    try:
        if options.png is not None:
            from training.report.png import write_pictures

            return write_pictures(
                [*figures_together(runs), *(figures_of(runs[0], now) if len(runs) == 1 else [])], options.png
            )
        from training.report.page import render

        # For its owner alone: configuration and samples may hold what others should not read.
        write_whole(path, render(runs, now), mode=0o600)
    except OSError as error:
        target = options.png or path
        raise InputError(f"{target} cannot be written: {error.strerror or error}; choose another place") from error
    return [path]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
