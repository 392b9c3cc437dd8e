"""`request.json` of the run directory: the command that asked for the run, so that it can be asked for again.

    {"arguments": ["--nodes", "2", "--", "-e", "a"], "directory": "/home/you/project", "submitted": 1790000000.0,
     "job_id": "12"}                                    no job_id where it ran without Slurm

Values of ``-x NAME=VALUE`` are in it: the file is its owner's alone (0600), in a directory that is too (0700).
"""

import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.private import make_private_directory
from cluster.run_file import read_json, write_json

REQUEST_FILE = "request.json"


class Request(NamedTuple):
    """The arguments of `cluster.submit`, the directory in which they were given, and when (seconds since 1970)."""

    arguments: list[str]
    directory: str
    submitted: float
    job_id: str | None = None

    @property
    def command(self) -> str:
        """What to type."""
        return f"cd {shlex.quote(self.directory)} && python -m cluster.submit {shlex.join(self.arguments)}"


def record_request(run_dir: Path, arguments: Sequence[str], job_id: str | None, submitted: float | None = None) -> None:
    """Keep the request with its run, whose directory is made where there is none. A full disk is only a warning.

    It was `submitted` now, unless that is given.
    """
    request = Request(list(arguments), os.getcwd(), submitted or time.time(), job_id)
    try:
        make_private_directory(run_dir)
        write_json(run_dir / REQUEST_FILE, request._asdict())
    except OSError as error:
        print(f"warning: {run_dir}/{REQUEST_FILE} cannot be written ({error.strerror}): resubmit will not know the run")


def read_request(run_dir: Path) -> Request | None:
    """The latest request for this run; None for a run that `cluster.submit` did not start."""
    try:
        data = read_json(run_dir / REQUEST_FILE)
        return None if data is None else Request(**data)
    except (OSError, ValueError, TypeError):
        return None
