"""Which commit of git the working directory is at, so that a run can say by which code it was made."""

import os
import re
import subprocess
from pathlib import Path

SECONDS = 10.0
"""Longest wait for git, which looks at every file it knows; a slow file system costs the answer, not the run."""
_COMMIT = re.compile(r"([0-9a-f]{40,64})(-dirty|-broken)?")


def git_revision(folder: Path) -> dict[str, str | bool] | None:
    """`commit`, and `dirty`: whether files that git knows were changed since. None where there is no git, no checkout
    or no answer."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=64", "--broken", "--exclude=*"]
    try:
        # Looking must not write: not even git's own index, which another git may be using.
        environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environ)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _COMMIT.fullmatch(done.stdout.strip())
    return None if found is None else {"commit": found[1], "dirty": found[2] is not None}
