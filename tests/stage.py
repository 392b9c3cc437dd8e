"""One job of the launcher on the tests' Slurm, with all that it takes to throw a fault at it and see what comes of it.

Nothing here sleeps for a fixed time: a fault strikes when a rank's own heartbeat says that it is where it belongs.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from conftest import ROOT, Mpi
from slurm_lab import JobResult, SlurmLab, command_name, marked_processes

LOOK_EVERY = 0.02

JOB = """\
#!/bin/bash
exec {launcher}
"""


class RankProcesses(NamedTuple):
    """A rank while it runs: what mpirun started, and the program below it."""

    rank: int
    host: str
    watcher: int
    program: int
    heartbeat: str

    def beat(self) -> dict[str, Any]:
        """The newest heartbeat; empty before the first and once the rank has gone."""
        try:
            return dict(json.loads(Path(self.heartbeat).read_bytes().rstrip(b" \0") or b"{}"))
        except (OSError, ValueError):
            return {}


class Stage:
    """A job to be: `name` is its experiment's, `project` a folder made by `make_project`."""

    def __init__(self, lab: SlurmLab, mpi: Mpi, project: Path, name: str) -> None:
        self.lab, self.mpi, self.project, self.name = lab, mpi, project, name
        self.run_dir = project / "outputs" / name
        self.job = ""

    # ── the job ─────────────────────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        program: Sequence[str],
        launcher: Sequence[str] = (),
        sbatch: Sequence[str] = ("--nodes=2", "--ntasks-per-node=1"),
    ) -> str:
        """Submit a batch job that launches `program`, told the launcher's and sbatch's options; its id."""
        command = [sys.executable, "-m", "cluster.launch", "--mpirun", str(self.mpi.mpirun)]
        # This checkout's packages, also where a program lies outside of it.
        command += ["--experiment-name", self.name, "-x", f"PYTHONPATH={ROOT}", *launcher, "--", *program]
        script = self.project / f"{self.name}.sh"
        script.write_text(JOB.format(launcher=shlex.join(command)))
        self.job = self.lab.sbatch(
            *["--requeue", "--open-mode=append", f"--output={self.project}/{self.name}-%j.log", *sbatch, str(script)],
            cwd=self.project,
        )
        return self.job

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.project.glob(f"{self.name}-*.log")))

    def end(self, seconds: float = 150) -> JobResult:
        return self.lab.wait_job(self.job, timeout=seconds)

    # ── what the launcher wrote ─────────────────────────────────────────────────────────────────────────────

    def attempts(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads((self.run_dir / "run.json").read_text())["attempts"])
        except FileNotFoundError:
            return []

    def attempt_dir(self, number: int) -> Path:
        return self.run_dir / f"attempt-{number:04d}"

    def ended(self, attempt: int, seconds: float = 90) -> dict[str, Any]:
        """Wait until the attempt has a verdict; its entry in run.json."""

        def entry() -> dict[str, Any] | None:
            return next((one for one in self.attempts() if one["attempt"] == attempt and "verdict" in one), None)

        return self.wait(entry, f"the verdict of attempt {attempt}", seconds)

    def weights(self) -> str:
        """The hash of the finished run's weights; empty where it did not finish."""
        try:
            return str(json.loads((self.run_dir / "summary.json").read_text())["weights_sha256"])
        except FileNotFoundError:
            return ""

    def struck(self, *ranks: int) -> float:
        """Wait for a fault that is built into the program; when the first of these ranks met it."""
        paths = [self.run_dir / f"struck-{rank}" for rank in ranks]
        self.wait(lambda: all(path.exists() and path.read_text() for path in paths), "the program's own fault", 60)
        return min(float(path.read_text()) for path in paths)

    # ── its processes ───────────────────────────────────────────────────────────────────────────────────────

    def ranks(self, attempt: int = 1) -> list[RankProcesses]:
        """Wait until every rank of the attempt has begun its program; in order."""

        def all_of_them() -> list[RankProcesses]:
            found = sorted(self._begun(attempt))
            return found if found and len(found) == self._world_size(attempt) else []

        return self.wait(all_of_them, f"the ranks of attempt {attempt}", 90)

    def at_step(self, step: int, attempt: int = 1) -> list[RankProcesses]:
        """The ranks, once all of them have made `step` steps."""
        ranks = self.ranks(attempt)
        self.wait(
            lambda: all(rank.beat().get("step", -1) >= step for rank in ranks), f"step {step} of attempt {attempt}", 90
        )
        return ranks

    def host_of(self, rank: int, attempt: int = 1) -> str:
        """Where a rank began, also if it has ended."""
        lines = (self.attempt_dir(attempt) / "ranks.jsonl").read_text().splitlines()
        return next(str(record["host"]) for record in map(json.loads, lines) if record["rank"] == rank)

    def launcher(self) -> int:
        """The launcher's process, which is the batch body."""
        lock = self.run_dir / "launcher.lock"
        self.wait(lambda: lock.exists() and lock.read_text().startswith("process "), "the launcher", 60)
        return int(lock.read_text().split()[1])

    def mpirun(self) -> int:
        """The launcher's mpirun."""
        launcher = self.launcher()
        found = self.wait(
            lambda: [pid for pid in children(launcher) if command_name(pid).startswith(("mpi", "prte", "orte"))],
            "mpirun",
        )
        return int(found[0])

    def daemon(self, host: str) -> int:
        """mpirun's daemon on a host other than the first."""
        return int(
            self.wait(lambda: self.lab.processes(host, "prted") + self.lab.processes(host, "orted"), "mpirun's daemon")[
                0
            ]
        )

    def left(self, attempt: int | None = None) -> list[str]:
        """What still runs on any host of an attempt's ranks, or (None) of the whole job; each as a few words."""
        wanted = [str(self.attempt_dir(attempt))] if attempt else [f"SLURM_JOB_ID={self.job}\0", str(self.run_dir)]
        found = []
        for pid, mark in marked_processes().items():
            if mark.split(":")[1] == str(self.lab.directory) and command_name(pid) not in ("slurmstepd", "slurmd"):
                said = _said_by(pid)
                if any(word in said for word in wanted):
                    found.append(f"{command_name(pid)} {pid} on {mark.split(':')[2]}")
        return found

    def left_after(self, seconds: float, attempt: int | None = None) -> list[str]:
        """What still runs so many seconds from now; returns at once where nothing does."""
        deadline = time.monotonic() + seconds
        while (left := self.left(attempt)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def wait(self, true: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
        """Wait for an event; what it is then. The limit only ends what has already failed."""
        deadline = time.monotonic() + seconds
        while not (value := true()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: waited {seconds:g} s for {what}; its log ends:\n{self.log()[-2000:]}")
            time.sleep(LOOK_EVERY)
        return value

    def _world_size(self, attempt: int) -> int:
        [entry] = [one for one in self.attempts() if one["attempt"] == attempt]
        return sum(int(host[1]) for host in entry["hosts"])

    def _begun(self, attempt: int) -> Iterator[RankProcesses]:
        try:
            lines = (self.attempt_dir(attempt) / "ranks.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return
        for record in map(json.loads, lines):
            if record["state"] == "started":
                for child in children(record["pid"]):
                    if heartbeat := environment_of(child).get("CLUSTER_HEARTBEAT"):
                        yield RankProcesses(record["rank"], record["host"], record["pid"], child, heartbeat)


def make_project(folder: Path) -> Path:
    """A user's checkout in `folder`: the packages, and nothing that an earlier run wrote."""
    for name in ("cluster", "training", "sbatch", ".venv"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


def children(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = Path(f"/proc/{name}/stat").read_text().rpartition(") ")[2].split()[1]
            except OSError:
                continue
            if parent == str(pid):
                found.append(int(name))
    return found


def environment_of(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(line.partition("=")[::2] for line in text.split("\0") if line)


def _said_by(pid: int) -> str:
    try:
        return "".join(
            Path(f"/proc/{pid}/{name}").read_text(errors="replace") + "\0" for name in ("cmdline", "environ")
        )
    except OSError:
        return ""
