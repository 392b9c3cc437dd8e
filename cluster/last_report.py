"""Once there is a verdict, the report that the trainer has written is brought up to date: a run that failed is the one
whose report is opened."""

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cluster.environment import with_project
from cluster.trainer import REPORT_FILE, is_training

WITHIN = 60.0
"""Seconds that the job waits for it."""


def refresh_report(run_dir: Path, program: Sequence[str]) -> None:
    """Write RUN/report.html again, by the trainer's own Python; where there is none, or it fails, nothing happens."""
    if not (is_training(program) and (run_dir / REPORT_FILE).exists()):
        return
    command = [program[0], "-m", "training.report", str(run_dir)]
    silent = subprocess.DEVNULL
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            command, stdin=silent, stdout=silent, stderr=silent, env=with_project(os.environ), timeout=WITHIN
        )
