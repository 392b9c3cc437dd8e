"""A run as an object: ``from cluster import submit, Run``.

    run = submit(["--experiment-name", "a"], nodes=2, gpus=8)
    run.wait()                          its exit status
    [row["loss"] for row in run.metrics() if "loss" in row]
    Run("a").cancel()                   also from another process, another day

Nothing is kept but the run's directory: every answer is what lies there, and what Slurm says, at that moment.
"""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.errors import RequestError
from cluster.jobs import job_now
from cluster.private import check_private
from cluster.progress import Progress, all_rows, read_progress
from cluster.request_file import Request, read_request
from cluster.run_state import RunState, look, look_now, states
from cluster.rundir import DEFAULT_OUTPUT_DIR, attempt_of, newest_attempt
from cluster.runs import all_runs, find_run
from cluster.stop import stop
from cluster.trainer import METRICS_FILE

LOOK_EVERY = 0.5
"""Seconds between two looks at a run, while it is waited for."""
ASK_SLURM_EVERY = 5.0
"""The same where only Slurm knows whether it goes on: no launcher holds the directory, and the job may be any."""


class Run:
    """A run, by its experiment's name, its directory or a job id; without any of them the newest.

    Raises `RequestError` where there is none.
    """

    def __init__(
        self, name: str | os.PathLike[str] | None = None, output_dir: str | os.PathLike[str] = DEFAULT_OUTPUT_DIR
    ) -> None:
        self.directory: Path = find_run(None if name is None else os.fspath(name), Path(output_dir))
        self.launcher: subprocess.Popen[bytes] | None = None
        """The launcher, where it is a child of this process."""

    @classmethod
    def all(cls, output_dir: str | os.PathLike[str] = DEFAULT_OUTPUT_DIR) -> "list[Run]":
        """The runs in that directory, the one that changed last first."""
        return [cls(path) for path in all_runs(Path(output_dir))]

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.directory.name

    @property
    def state(self) -> RunState:
        """``state.name`` is the word that ``cluster status`` shows; ``state.is_over`` whether nothing more happens."""
        return look_now(self.directory)[1]

    @property
    def job_id(self) -> str | None:
        """The job that was submitted last for it; None without Slurm."""
        return look(self.directory).job_id

    @property
    def attempts(self) -> Sequence[Mapping[str, Any]]:
        """The attempts as `run.json` has them (see `cluster.run_file`), the newest last."""
        return look(self.directory).attempts

    @property
    def progress(self) -> Progress:
        """Steps, losses, speed: what is known of them now."""
        return read_progress(self.directory)

    @property
    def log(self) -> Path:
        """The launcher's own log of the newest attempt: plan, rank 0, verdicts."""
        return launcher_log(self.directory, newest_attempt(self.directory))

    @property
    def request(self) -> Request:
        """What was submitted. Raises `RequestError` for a run that was started in another way."""
        check_private(self.directory)
        if request := read_request(self.directory):
            return request
        raise RequestError(
            f"{self.name} was not started by cluster submit: give its own command again (sbatch …, or "
            "python -m cluster.launch …), with the same experiment name it goes on"
        )

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`: one for each logged step, evaluation and event; none before the first."""
        return all_rows(self.directory / METRICS_FILE)

    def wait(self, timeout: float | None = None) -> int:
        """The run's exit status once it is over, through restarts and requeues (0: complete).

        Raises:
            TimeoutError: it is not over after that many seconds.
            LauncherError: Slurm stopped knowing the job before it said how it ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        found, state = look_now(self.directory)
        if found.job_id and found.has_own_job and not state.is_over:
            from cluster.wait import wait_for_job

            return wait_for_job(found.job_id, self.log, follow=False, timeout=timeout)
        while not state.is_over:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} is {state} after {timeout:g} s")
            time.sleep(ASK_SLURM_EVERY if found.job_id and not found.held else LOOK_EVERY)
            found = look(self.directory)
            if not found.held:
                [(state, _)] = states([found])
        if self.launcher is not None:
            return self.launcher.wait()
        if found.job_id and found.has_own_job and (job := job_now(found.job_id)) and job.ended:
            return job.exit_status
        return int((found.newest.get("verdict") or {"status": 1})["status"])

    def cancel(self) -> str:
        """Stop it for good, and wait until nothing of it runs; what was stopped: ``job 12 cancelled``.

        Raises:
            RequestError: it does not run.
            LauncherError: it cannot be stopped from here.
        """
        return stop(self.directory)

    def request_again(self) -> Request:
        """What `resubmit` would submit. Raises `RequestError` where that cannot be."""
        request = self.request
        if not (state := self.state).is_over:
            raise RequestError(f"{self.name} is {state}: it goes on by itself; cancel it first to submit it anew")
        if not os.path.isdir(request.directory):
            raise RequestError(f"{self.name} was submitted in {request.directory}: that is no directory any more")
        return request

    def resubmit(self) -> "Run":
        """The same request again, from the directory in which it was given: it goes on from its newest checkpoint.

        Raises `RequestError` where it is not over, or was not started by `submit`.
        """
        from cluster.submit import submit_words

        request = self.request_again()
        with contextlib.chdir(request.directory):
            return submit_words(request.arguments)

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"


def launcher_log(run_dir: Path, number: int) -> Path:
    """The job's log; mpirun's own output where there is no job, because that launcher prints to its terminal.

    Of a job that was submitted since and has had no attempt yet, its log counts as soon as it is there.
    """
    found = look(run_dir)
    entry = next((one for one in found.attempts if one["attempt"] == number), {})
    is_newest = not found.attempts or number >= found.attempts[-1]["attempt"]  # also where it is not written down yet
    for job_id in filter(None, [found.job_id if is_newest else None, entry.get("job_id")]):
        logs = [path for path in run_dir.glob(f"*-{job_id}.log") if not path.name.endswith(f"-prepare-{job_id}.log")]
        if logs:
            return logs[0]
        record = slurm.record_of(slurm.job_detail(job_id, slurm.SOON) or "", job_id)
        told = re.search(r"^\s*StdOut=(.+)$", record, re.MULTILINE)
        if told and Path(told[1]).exists():
            return Path(told[1])
    return attempt_of(run_dir, number).mpirun_log
