"""In the batch body of a sweep's array: becomes the launcher of the element whose index Slurm gives.

python -m cluster.element outputs/base/sweep.json
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

from cluster import own_job
from cluster.errors import RequestError
from cluster.launch import main as launch
from cluster.options import run
from cluster.private import check_private
from cluster.sweep_file import read_sweep


def main(arguments: list[str]) -> int:
    index = os.environ.get("SLURM_ARRAY_TASK_ID")
    if len(arguments) != 1 or index is None:
        raise RequestError("this is for the batch body of a sweep's job array: python -m cluster sweep submits it")
    check_private(Path(arguments[0]).parent)
    sweep = read_sweep(Path(arguments[0]).parent)
    if sweep is None or int(index) >= len(sweep.elements):
        raise RequestError(f"{arguments[0]} has no element {index}: this job was submitted with another one")
    element = sweep.elements[int(index)]
    link_log(sweep.directory, element.name)
    return launch(element.launch)


def link_log(sweep_dir: Path, name: str) -> None:
    """Show the job's log in the element's own run directory too, where the other commands look for it."""
    job_id, element = os.environ["SLURM_JOB_ID"], own_job.own_id(os.environ)
    with suppress(OSError):  # it is there since an earlier start, or the file system knows no links
        (sweep_dir / name / f"{name}-{job_id}.log").symlink_to(f"../{os.environ['SLURM_JOB_NAME']}-{element}.log")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
