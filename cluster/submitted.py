"""In the batch body of a submitted job: hands over to submitit, once what it will load is sure to be this user's own.

    python -m cluster.submitted outputs/a/submitit

submitit loads a pickle, which may do anything. Between submission and start somebody may have put another directory
in this one's place: it is opened, looked at, and from then on meant by its descriptor.
"""

import os
import sys
from pathlib import Path

from cluster.errors import RequestError
from cluster.options import run
from cluster.private import open_private


def main(arguments: list[str]) -> int:
    [folder] = arguments
    try:
        descriptor = open_private(Path(folder))
    except OSError as error:
        raise RequestError(f"{folder} is no directory of this user's ({error.strerror}): submit again") from error
    from submitit.core.submission import process_job

    process_job(f"/proc/self/fd/{descriptor}")
    return 0


def submitit_job(arguments: list[str]) -> None:
    """What submitit calls there. SystemExit passes through it: the job's status is the true one."""
    import logging

    from cluster.launch import main as launch

    logging.getLogger("submitit").setLevel(logging.WARNING)  # the verdict stays the end of the log
    status = run(launch, arguments)
    os.umask(0o077)  # for what submitit writes of it
    if status:
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
