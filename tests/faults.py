"""The faults that the launcher and the trainer are to survive, each thrown at a real job on the tests' Slurm.

    make faults                                             all rows, repeats, both versions of Open MPI: hours
    .venv/bin/python tests/faults.py --rows SIGKILL --times 3 --mpi openmpi-5.0.11
    .venv/bin/python tests/faults.py --each-commit          what the tests run
    .venv/bin/python tests/faults.py --soak 30              a training of 30 minutes, a fault about every 90 s

Prints one table, and writes each single result to faults.jsonl. As root (see tests/slurm_lab.py).
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from conftest import MPIS, ROOT, Mpi
from slurm_lab import SlurmLab, load
from stage import RankProcesses, Stage, make_project
from steps import state_after

TESTS = ROOT / "tests"
HANG_TIMEOUT = 4
ENDED_WITHIN, NODE_WITHIN, HANG_WITHIN = 10.0, 15.0, HANG_TIMEOUT + 5.0
"""Seconds from a fault to the verdict."""
NOTHING_LEFT_WITHIN = 5.0
"""Seconds from an end to the end of every process of it."""
WARN = ["--time=60", "--signal=B:USR1@60"]
ONE_HOST = ["--nodes=1", "--ntasks-per-node=2", "--nodelist=r1n1"]
TWO_HOSTS = ["--nodes=2", "--ntasks-per-node=1"]


# ── what runs ───────────────────────────────────────────────────────────────────────────────────────────────


class Workload(NamedTuple):
    """A program that makes steps: the trainer, or `steps.py` which does the same without torch."""

    name: str
    steps: int
    save_every: int
    options: tuple[str, ...]

    def program(self, *faults: str) -> list[str]:
        """Its command line, with faults built in."""
        if self.name == "steps":
            built_in = [word for fault in faults for word in ("--fault", fault)]
            numbers = ["--steps", str(self.steps), "--save-every", str(self.save_every)]
            return [sys.executable, str(TESTS / "steps.py"), *numbers, *self.options, *built_in]
        start = [str(TESTS / "sabotage.py"), *faults] if faults else ["-m", "training.train_llm"]
        numbers = ["--max-steps", str(self.steps), "--ckpt-freq", str(self.save_every)]
        return [sys.executable, *start, "--preset", "smoke", "--device", "cpu", *numbers, *self.options]

    def but(self, *options: str, steps: int | None = None) -> "Workload":
        """The same with more options, or another length."""
        return self._replace(steps=steps or self.steps, options=(*self.options, *options))


STEPS = Workload("steps", 200, 10, ("--step-seconds", "0.02"))
TRAINING = Workload("training", 120, 10, ("--batch-size", "2", "--seq-length", "32", "--max-eval-samples", "8"))


class Play(Stage):
    """A stage with the workload of a row; what it takes from the cluster it gives back at the end."""

    def __init__(
        self, lab: SlurmLab, mpi: Mpi, project: Path, name: str, workload: Workload, seed: int, patience: float = 1.0
    ) -> None:
        """With `patience`, for a machine that has other work too, every time limit counts that many fold, and no fault
        strikes while a save that is due is still being written: what was made meanwhile would be lost besides."""
        super().__init__(lab, mpi, project, name)
        self.workload = workload
        self.patience = patience
        self.random = random.Random(seed)
        self.undo: list[Callable[[], object]] = []
        self.program = workload.program()
        self.options = ["--hang-timeout", str(HANG_TIMEOUT), "--restarts", "3"]

    def begin(
        self, *faults: str, workload: Workload | None = None, sbatch: Sequence[str] = (), launcher: Sequence[str] = ()
    ) -> "Play":
        """Submit, on two hosts where `sbatch` says nothing else."""
        self.workload = workload or self.workload
        self.submit(self.workload.program(*faults), [*self.options, *launcher], [*TWO_HOSTS, *sbatch])
        return self

    def at_step(self, step: int, attempt: int = 1) -> list[RankProcesses]:
        ranks = super().at_step(step, attempt)
        if self.patience > 1:
            self.wait(lambda: self._saved_what_is_due(ranks[0].beat()), "a checkpoint that is due")
        return ranks

    def _saved_what_is_due(self, beat: dict[str, Any]) -> bool:
        made, saved = beat.get("step", 0), beat.get("saved_step") or 0
        return made - saved < self.workload.save_every

    def some_step(self) -> int:
        """A step at which something has been saved and something is left to do."""
        return self.random.randrange(self.workload.save_every + 2, self.workload.steps // 2)

    def warn(self, check: bool = True) -> float:
        """Ask the job to save and stop, as Slurm does before the time limit; when."""
        at = time.time()
        self.lab.run("ctl", ["scancel", "--batch", "--signal=USR1", self.job], check=check)
        return at

    def leave(self) -> None:
        """Take the job away and give back what was taken."""
        if self.job and self.lab.job(self.job).get("JobState") in ("RUNNING", "PENDING", "COMPLETING"):
            self.lab.run("ctl", ["scancel", self.job], check=False)
        self.leave_hosts()

    def leave_hosts(self) -> None:
        """Give back what was taken from the cluster."""
        while self.undo:
            self.undo.pop()()


class Expected(NamedTuple):
    """What must come of a fault. `at`: when it struck (None: not to be timed)."""

    kind: str
    at: float | None = None
    rank: int | None = None
    host: str | None = None
    within: float = ENDED_WITHIN
    attempt: int = 1
    steps_lost: int | None = None
    """At most; None for a checkpoint interval."""
    finishes: bool = True
    """Whether the job goes on to the undisturbed result; else it ends in `state` with `status`."""
    requeues: int = 0
    """How often Slurm queues the job again for it."""
    state: str = "COMPLETED"
    status: int | None = None
    problems: tuple[str, ...] = ()
    """What was wrong already."""


# ── the faults ──────────────────────────────────────────────────────────────────────────────────────────────
# Each throws one fault at a running job and says what must come of it.


def kill_a_rank(play: Play, attempt: int = 1, step: int | None = None) -> Expected:
    ranks = play.at_step(step or play.some_step(), attempt)
    victim = play.random.choice(ranks)
    at = time.time()
    os.kill(victim.program, signal.SIGKILL)
    return Expected("rank crash", at, victim.rank, victim.host, attempt=attempt)


def kill_a_watcher(play: Play, attempt: int = 1, step: int | None = None) -> Expected:
    victim = play.random.choice(play.at_step(step or play.some_step(), attempt))
    at = time.time()
    os.kill(victim.watcher, signal.SIGKILL)
    return Expected("rank crash", at, victim.rank, victim.host, attempt=attempt)


def kill_two_ranks(play: Play) -> Expected:
    """100 ms apart: the first is guilty."""
    first, second = play.random.sample(play.at_step(play.some_step()), 2)
    at = time.time()
    os.kill(first.program, signal.SIGKILL)
    time.sleep(0.1)
    try:
        os.kill(second.program, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return Expected("rank crash", at, first.rank, first.host)


def stop_a_rank(play: Play, attempt: int = 1, step: int | None = None) -> Expected:
    victim = play.random.choice(play.at_step(step or play.some_step(), attempt))
    at = time.time()
    os.kill(victim.program, signal.SIGSTOP)
    return Expected("hang", at, victim.rank, victim.host, within=HANG_WITHIN, attempt=attempt)


def second_host(ranks: Sequence[RankProcesses]) -> RankProcesses:
    """The first rank that is not on the launcher's own host: it stands for its host in a verdict."""
    return next(rank for rank in ranks if rank.host != ranks[0].host)


def kill_the_daemon(play: Play, attempt: int = 1, step: int | None = None) -> Expected:
    second = second_host(play.at_step(step or play.some_step(), attempt))
    daemon = play.daemon(second.host)
    at = time.time()
    os.kill(daemon, signal.SIGKILL)
    return Expected("node lost", at, second.rank, second.host, within=NODE_WITHIN, attempt=attempt, requeues=1)


def lose_three_hosts(play: Play) -> Expected:
    """One after another, of four: too few would be left if the job were kept from each for ever."""
    problems: list[str] = []
    for attempt in (1, 2):
        expected = kill_the_daemon(play, attempt, play.workload.steps * attempt // 5)
        problems += wrong_verdict(play.ended(attempt)["verdict"], expected)
    third = kill_the_daemon(play, 3, play.workload.steps * 3 // 5)
    return third._replace(requeues=3, problems=tuple(problems))


def kill_mpirun(play: Play, attempt: int = 1, step: int | None = None) -> Expected:
    play.at_step(step or play.some_step(), attempt)
    mpirun = play.mpirun()
    at = time.time()
    os.kill(mpirun, signal.SIGKILL)
    return Expected("launcher failed", at, attempt=attempt)


def kill_the_launcher(play: Play) -> Expected:
    """Nobody is left to restart it or to say so: the job fails, and the same command goes on from there."""
    play.at_step(play.some_step())
    launcher = play.launcher()
    os.kill(launcher, signal.SIGKILL)
    problems = []
    if left := play.left_after(NOTHING_LEFT_WITHIN, 1):
        problems.append(f"left behind: {', '.join(left)}")
    if (end := play.end()).state == "COMPLETED":
        problems.append(f"false {end.state}")
    play.begin()
    return Expected("launcher failed", problems=tuple(problems))


def unplug(play: Play, attempt: int = 1, step: int | None = None) -> Expected:
    """Not the first host, where the launcher runs."""
    return _unplugged(play, second_host(play.at_step(step or play.some_step(), attempt)), attempt)


def _unplugged(play: Play, victim: RankProcesses, attempt: int = 1) -> Expected:
    play.undo.append(lambda: play.lab.rejoin(victim.host))
    at = time.time()
    play.lab.unplug(victim.host)
    return Expected("node lost", at, victim.rank, victim.host, within=NODE_WITHIN, attempt=attempt, requeues=1)


def unplug_with_a_spare(play: Play) -> Expected:
    """The allocation has one host more, which takes the place of the lost one."""
    victim = second_host(play.at_step(play.some_step()))
    return _unplugged(play, victim)._replace(requeues=0)


def kill_the_host(play: Play) -> Expected:
    victim = second_host(play.at_step(play.some_step()))
    play.undo.append(lambda: play.lab.boot(victim.host))
    at = time.time()
    play.lab.kill_host(victim.host)
    return Expected("node lost", at, victim.rank, victim.host, within=NODE_WITHIN, requeues=1)


def unplug_the_first_host(play: Play) -> Expected:
    """The launcher is cut off with its own ranks: it must fence itself, and Slurm starts the job elsewhere."""
    first = play.at_step(play.some_step())[0]
    play.undo.append(lambda: play.lab.rejoin(first.host))
    at = time.time()
    play.lab.unplug(first.host)
    return Expected("node lost", at, host=first.host, within=NODE_WITHIN, requeues=1)


def lose_slurmd(play: Play) -> Expected:
    """The ranks do not notice; Slurm does after half a minute, and queues the job again by itself."""
    victim = second_host(play.at_step(play.workload.save_every + 2))
    play.undo.append(lambda: play.lab.rejoin(victim.host))
    for pid in play.lab.processes(victim.host, "slurmd"):
        os.kill(pid, signal.SIGKILL)
    return Expected("node lost", host=victim.host, requeues=1)


def warn_once(play: Play, attempt: int = 1, step: int | None = None) -> Expected:
    play.at_step(step or play.some_step(), attempt)
    return Expected("saved for requeue", play.warn(), attempt=attempt, steps_lost=0, requeues=1)


def warn_twice(play: Play) -> Expected:
    play.at_step(play.some_step())
    at = play.warn()
    play.warn(check=False)  # the first may have ended the job already
    return Expected("saved for requeue", at, steps_lost=0, requeues=1)


def warn_during_a_save(play: Play) -> Expected:
    first = play.ranks()[0]
    play.wait(lambda: first.beat().get("phase") == "save", "a save")
    return Expected("saved for requeue", play.warn(), steps_lost=0, requeues=1)


def warn_before_the_group(play: Play) -> Expected:
    play.launcher()
    play.warn()
    return Expected("saved for requeue", steps_lost=0, requeues=1)


def preempt(play: Play, attempt: int = 1, step: int | None = None) -> Expected:
    """A job of a higher partition wants a host: warning, then the grace time of 8 s."""
    play.at_step(step or play.some_step(), attempt)
    host = play.lab.job(play.job)["BatchHost"]
    at = time.time()
    urgent = play.lab.sbatch(
        "--partition=urgent", f"--nodelist={host}", "--exclusive", "--wrap=sleep 600", cwd=play.project
    )
    play.undo.append(lambda: play.lab.run("ctl", ["scancel", urgent], check=False))
    return Expected("saved for requeue", at, attempt=attempt, steps_lost=0, requeues=1)


def preempt_a_slow_save(play: Play) -> Expected:
    return preempt(play)._replace(kind="preempted", within=25, steps_lost=None)


def reach_the_time_limit(play: Play) -> Expected:
    """The warning is due at once; Slurm looks every 30 s."""
    play.at_step(play.some_step())
    play.lab.run("ctl", ["scontrol", "update", f"JobId={play.job}", "EndTime=now+50"])
    play.ended(1)
    play.lab.run("ctl", ["scontrol", "update", f"JobId={play.job}", "TimeLimit=60"])
    return Expected("saved for requeue", steps_lost=0, requeues=1)


def reach_the_time_limit_unwarned(play: Play) -> Expected:
    play.at_step(play.some_step())
    play.lab.run("ctl", ["scontrol", "update", f"JobId={play.job}", "EndTime=now+1"])
    return Expected("time limit", finishes=False, state="TIMEOUT")


def cancel(play: Play) -> Expected:
    play.at_step(play.some_step())
    at = time.time()
    play.lab.run("ctl", ["scancel", play.job])
    return Expected("cancelled", at, finishes=False, state="CANCELLED")


def mix_five(play: Play) -> Expected:
    """One after another in one run; each must get its own verdict, and the run the undisturbed result."""
    problems: list[str] = []
    faults = (kill_a_rank, warn_once, stop_a_rank, kill_mpirun, kill_a_rank)
    for attempt, fault in enumerate(faults, 1):
        step = play.workload.steps * (2 * attempt - 1) // (2 * len(faults))
        expected = fault(play, attempt, step)
        problems += wrong_verdict(play.ended(attempt)["verdict"], expected)
    return Expected("complete", attempt=len(faults) + 1, requeues=1, problems=tuple(problems))


def meet(play: Play, kind: str, *guilty: int, **other: Any) -> Expected:
    """The fault is in the program: wait for it."""
    at = play.struck(*guilty)
    rank = guilty[0] if len(guilty) == 1 else None
    return Expected(kind, at, rank, None if rank is None else play.host_of(rank), **other)


def lose_the_controller(play: Play, seconds: float) -> Expected:
    """The job does not need slurmctld, until it has to be queued again."""
    play.at_step(play.some_step())
    _without_controller(play, seconds)
    return Expected("complete")


def lose_the_controller_and_a_rank(play: Play, seconds: float) -> Expected:
    """To launch again mpirun needs srun, and srun the controller."""
    ranks = play.at_step(play.workload.save_every + 2)
    began = time.monotonic()
    play.lab.stop_controller()
    try:
        victim = play.random.choice(ranks)
        at = time.time()
        os.kill(victim.program, signal.SIGKILL)
        play.ended(1)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    finally:
        play.lab.start_controller()
    return Expected("rank crash", at, victim.rank, victim.host)


def submit_without_a_controller(play: Play, seconds: float) -> Expected:
    """`cluster.submit` waits for it or says what is wrong, which is not the user's request."""
    play.lab.stop_controller()
    command = [sys.executable, "-m", "cluster.submit", "--nodes", "2", "--ranks-per-node", "1", "--no-check"]
    command += ["--mpirun", str(play.mpi.mpirun), "--experiment-name", play.name, "-x", f"PYTHONPATH={ROOT}"]
    began = time.monotonic()
    process = play.lab.start("ctl", [*command, "--program", "--", *play.program], cwd=play.project)
    try:
        while process.poll() is None and time.monotonic() - began < seconds:
            time.sleep(0.2)
        down = time.monotonic() - began
        time.sleep(max(0.0, seconds - down))
    finally:
        play.lab.start_controller()
    status = process.wait(timeout=120)
    problems = [] if status in (0, 70) else [f"submit said {status} (wanted: 0 or 70)"]
    if status != 0:
        play.begin()
    else:
        play.job = play.lab.run("ctl", ["squeue", "-h", "-o", "%A", f"--name={play.name}"]).stdout.split()[0]
    return Expected("complete", problems=tuple(problems))


def _without_controller(play: Play, seconds: float) -> None:
    play.lab.stop_controller()
    try:
        time.sleep(seconds)
    finally:
        play.lab.start_controller()


def lack_the_interpreter(play: Play) -> Expected:
    """The second host has an empty folder where the first has Python."""
    folder = str(Path(sys.executable).parent)
    play.lab.run("r1n2", ["mount", "-t", "tmpfs", "none", folder])
    play.undo.append(lambda: play.lab.run("r1n2", ["umount", folder]))
    play.begin()
    started = play.wait(play.attempts, "the first attempt")[0]["started"]
    return Expected("node lost", started, host="r1n2", within=NODE_WITHIN, requeues=1)


def go_slow(play: Play) -> Expected:
    """One rank takes four times as long: a warning that names it and no other, and no verdict."""
    play.ended(1)
    events = [json.loads(line) for line in (play.run_dir / "events.jsonl").read_text().splitlines()]
    named = [event["rank"] for event in events if event["event"] == "straggler"]
    return Expected("complete", problems=() if named == [2] else (f"stragglers {named}, wanted [2]",))


def fill_the_disk(play: Play) -> Expected:
    """The whole run directory lies on a file system of 1 MB that only the first host sees."""
    return _without_a_word(play, "size=1m", STEPS.but("--save-bytes", "2000000"))


def use_up_the_inodes(play: Play) -> Expected:
    return _without_a_word(play, "size=10m,nr_inodes=30", STEPS, files=40)


def _without_a_word(play: Play, options: str, workload: Workload, files: int = 0) -> Expected:
    """The run directory takes no more word, so all that can be asked is the batch log."""
    disk = play.project / f"disk-{play.name}"
    _mount(play, disk, options)
    play.workload = workload
    play.submit(workload.program(), [*play.options, "--output-dir", str(disk)], ONE_HOST)
    play.wait(lambda: "attempt 1" in play.log(), "the launcher", 60)
    if files:
        script = f"i=0; while touch {disk}/$i 2>/dev/null && [ $i -lt {files} ]; do i=$((i+1)); done"
        play.lab.run("r1n1", ["sh", "-c", script], check=False)
    end = play.end()
    problems = []
    if f"── storage · exit status {end.exit_code}" not in play.log():
        problems.append(f"no verdict 'storage' in the log, which ends: {play.log()[-300:]!r}")
    return Expected("", finishes=False, state="FAILED", problems=tuple(problems))


def fill_the_checkpoints(play: Play) -> Expected:
    """Only the checkpoints lie on a small file system, which another fills once the first of them are there."""
    _mount(play, play.run_dir / "checkpoints", "size=40m")
    play.begin(sbatch=ONE_HOST)
    play.at_step(play.workload.save_every + 2)
    at = time.time()
    play.lab.run("r1n1", ["dd", "if=/dev/zero", f"of={play.run_dir}/checkpoints/else", "bs=1M"], check=False)
    return Expected("storage", at, rank=0, finishes=False, state="FAILED", status=1)


def make_it_read_only(play: Play) -> Expected:
    """The checkpoints' file system turns read-only, as after an error of its disk."""
    folder = play.run_dir / "checkpoints"
    _mount(play, folder, "size=200m")
    play.begin(sbatch=ONE_HOST)
    play.at_step(play.workload.save_every + 2)
    at = time.time()
    # It is refused while a checkpoint is being written.
    remount = ["mount", "-o", "remount,ro", str(folder)]
    play.wait(lambda: play.lab.run("r1n1", remount, check=False).returncode == 0, "the remount")
    return Expected("storage", at, rank=0, finishes=False, state="FAILED", status=1)


def _mount(play: Play, folder: Path, options: str) -> None:
    """A file system of its own there, which only r1n1 sees, closed to others as a run's directories are."""
    folder.mkdir(parents=True)
    play.lab.run("r1n1", ["mount", "-t", "tmpfs", "-o", f"{options},mode=700", "none", folder])
    play.undo.append(lambda: play.lab.run("r1n1", ["umount", "-l", folder]))


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Row:
    """A line of the table. `begin` submits (None: the fault does), `fault` strikes."""

    name: str
    fault: Callable[[Play], Expected]
    begin: Callable[[Play], Any] | None = Play.begin
    workloads: tuple[Workload, ...] = (STEPS, TRAINING)
    times: int = 3
    """In the long form, for each MPI and workload."""
    each_commit: tuple[str, ...] = ()
    """Names of the workloads with which it runs on each commit: "training@openmpi-4.1.8" with that MPI alone."""


def on_each_commit(row: Row, workload: Workload, mpi: str) -> bool:
    return not {workload.name, f"{workload.name}@{mpi}"}.isdisjoint(row.each_commit)


def begun(*faults: str, **how: Any) -> Callable[[Play], Any]:
    """A job with these faults in its program, submitted in this way."""
    return lambda play: play.begin(*faults, **how)


def met(kind: str, *guilty: int, **other: Any) -> Callable[[Play], Expected]:
    return lambda play: meet(play, kind, *guilty, **other)


ONLY_STEPS, ONLY_TRAINING = (STEPS,), (TRAINING,)
IN_TRAINING_4, IN_TRAINING_5 = "training@openmpi-4.1.8", "training@openmpi-5.0.11"
LONGER = {"steps": STEPS.but("--step-seconds", "0.05", steps=1000), "training": TRAINING.but(steps=4000)}
WARNED = {"sbatch": WARN}


def begin_longer(play: Play) -> Play:
    return play.begin(workload=LONGER[play.workload.name], sbatch=["--time=60", "--signal=B:USR1@20"])


def begin_with_a_spare(play: Play) -> Play:
    sbatch = ["--nodes=3", "--ntasks-per-node=1", "--no-kill"]
    return play.begin(sbatch=sbatch, launcher=["--spare-nodes", "1"])


ROWS = [
    Row("nothing", lambda play: Expected("complete"), times=1),
    Row("SIGKILL of a rank", kill_a_rank, times=20, each_commit=("steps", IN_TRAINING_4)),
    Row("SIGKILL of two ranks, 100 ms apart", kill_two_ranks, each_commit=("steps",)),
    # Two a host: with one, a host that has gone looks the same.
    Row("SIGKILL of a rank's watcher", kill_a_watcher, begun(sbatch=["--ntasks-per-node=2"]), each_commit=("steps",)),
    Row("exception", met("rank crash", 1), begun("exception@1:25"), each_commit=("steps",)),
    Row("segmentation fault", met("rank crash", 1), begun("segv@1:25"), each_commit=("steps",)),
    Row("abort", met("rank crash", 0), begun("abort@0:25"), each_commit=("steps",)),
    Row("exit 3", met("rank crash", 1), begun("exit3@1:25"), each_commit=("steps",)),
    Row("early _exit(0) of one rank", met("rank crash", 1), begun("exit0@1:25"), each_commit=("steps",)),
    Row("early _exit(0) of all ranks", met("rank crash", 0, 1), begun("exit0@all:25"), each_commit=("steps",)),
    Row(
        "two exits, 100 ms apart",
        met("rank crash", 1),
        begun("exit3@1:25", "exit3,0.1@0:25"),
        workloads=ONLY_STEPS,
        each_commit=("steps",),
    ),
    Row("out of memory", met("out of memory", 1), begun("memory@1:25"), each_commit=("steps",)),
    Row("no interpreter on the second host", lack_the_interpreter, None, ONLY_STEPS, each_commit=("steps",)),
    Row("preemption with grace", preempt, begun(**WARNED), each_commit=("steps@openmpi-5.0.11",)),
    Row(
        "a save slower than the grace",
        preempt_a_slow_save,
        begun(workload=STEPS.but("--stop-seconds", "60"), **WARNED),
        workloads=ONLY_STEPS,
        each_commit=("steps@openmpi-5.0.11",),
    ),
    Row("time limit", reach_the_time_limit, begin_longer),
    Row(
        "time limit without a warning",
        reach_the_time_limit_unwarned,
        begun(workload=LONGER["steps"].but(steps=3000)),
        ONLY_STEPS,
    ),
    Row("scancel", cancel, each_commit=("steps",)),
    Row("USR1", warn_once, times=10),
    Row("USR1 twice", warn_twice, each_commit=("steps",)),
    Row(
        "USR1 during a save",
        warn_during_a_save,
        begun(workload=STEPS.but("--save-seconds", "0.3")),
        workloads=ONLY_STEPS,
        each_commit=("steps",),
    ),
    Row("USR1 before the process group exists", warn_before_the_group, each_commit=(IN_TRAINING_4,)),
    Row("SIGKILL of mpirun's daemon", kill_the_daemon, each_commit=("steps",)),
    Row("SIGKILL of three daemons, one after another", lose_three_hosts, each_commit=("steps@openmpi-5.0.11",)),
    Row("SIGKILL of mpirun", kill_mpirun, each_commit=("steps",)),
    Row("SIGKILL of the launcher", kill_the_launcher, each_commit=("steps",)),
    Row("link down", unplug, times=5, each_commit=(IN_TRAINING_5,)),
    Row("link down, with a spare node", unplug_with_a_spare, begin_with_a_spare, each_commit=("steps",)),
    Row("link of the first host down", unplug_the_first_host),
    Row("a host without power", kill_the_host),
    Row("slurmd killed", lose_slurmd, begin_longer),
    Row("slurmctld down 60 s", lambda play: lose_the_controller(play, 60), begin_longer, times=1),
    Row(
        "slurmctld down 60 s, and a rank killed",
        lambda play: lose_the_controller_and_a_rank(play, 60),
        begin_longer,
        times=1,
    ),
    Row(
        "slurmctld down 60 s during submit",
        lambda play: submit_without_a_controller(play, 60),
        None,
        ONLY_STEPS,
        times=1,
    ),
    Row("SIGSTOP of a rank", stop_a_rank, times=10, each_commit=(IN_TRAINING_4,)),
    Row("a rank holds the GIL", met("hang", 1, within=HANG_WITHIN), begun("gil@1:25"), each_commit=("steps",)),
    Row("a rank loops", met("hang", 0, within=HANG_WITHIN), begun("loop@0:25"), each_commit=("steps",)),
    Row(
        "mismatched collective",
        met("hang", 1, within=HANG_WITHIN),
        begun("collective@1:25"),
        workloads=ONLY_TRAINING,
        each_commit=(IN_TRAINING_5,),
    ),
    Row(
        "one slow rank",
        go_slow,
        begun(workload=STEPS.but("--slow-rank", "2"), sbatch=["--ntasks-per-node=2"]),
        workloads=ONLY_STEPS,
        each_commit=("steps",),
    ),
    Row(
        "NaN in one rank's batch",
        met("numeric", 1, finishes=False, state="FAILED", status=1),
        begun("nan@1:25"),
        each_commit=(IN_TRAINING_5,),
    ),
    Row("five mixed faults in one run", mix_five, begun(**WARNED)),
    Row("full disk", fill_the_checkpoints, None, each_commit=(IN_TRAINING_4,)),
    Row("full disk, also the run directory's", fill_the_disk, None, ONLY_STEPS),
    Row("no inodes", use_up_the_inodes, None, ONLY_STEPS),
    Row("read-only checkpoints", make_it_read_only, None, each_commit=("steps",)),
]


# ── one play ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Result:
    """What came of one fault."""

    fault: str
    mpi: str
    workload: str
    problems: list[str] = field(default_factory=list)
    said: str = ""
    seconds: float | None = None
    """From the fault to the verdict."""
    steps_lost: int | None = None
    orphans: int = 0
    false_completed: bool = False
    took: float = 0.0


def play_row(
    row: Row, workload: Workload, lab: SlurmLab, mpi: Mpi, project: Path, name: str, seed: int, patience: float = 1.0
) -> Result:
    """Play a row once, with `patience` as `Play` takes it. Whatever happens, the job ends and the cluster is whole
    again."""
    result = Result(row.name, mpi.name, workload.name)
    began = time.monotonic()
    play = Play(lab, mpi, project, name, workload, seed, patience)
    try:
        if row.begin is not None:
            row.begin(play)
        judge(play, row.fault(play), result)
    except Exception as error:
        result.problems.append(f"{type(error).__name__}: {error}")
    finally:
        if not lab.processes("ctl", "slurmctld"):
            lab.start_controller()
        play.leave()
        result.took = time.monotonic() - began
    return result


def judge(play: Play, expected: Expected, result: Result) -> None:
    """Compare with what was expected; what is not so becomes a problem."""
    problems = result.problems
    problems += expected.problems
    if expected.kind:
        entry = play.ended(expected.attempt)
        problems += wrong_verdict(entry["verdict"], expected)
        result.said = "{kind}: rank {rank} on {host}, step {step}: {summary}".format(**entry["verdict"])
        if expected.at is not None:
            result.seconds = round(entry["ended"] - expected.at, 2)
            within = play.patience * expected.within
            if result.seconds > within:
                problems.append(f"ended after {result.seconds:.1f} s, wanted within {within:g} s")
        orphans = play.left_after(play.patience * NOTHING_LEFT_WITHIN, expected.attempt)
    else:
        orphans = []
    end = play.end()
    orphans += play.left_after(play.patience * NOTHING_LEFT_WITHIN)
    result.orphans = len(orphans)
    if orphans:
        problems.append(f"left behind: {', '.join(orphans)}")
    finished = end.state == "COMPLETED"
    attempts = play.attempts()
    complete = bool(attempts) and attempts[-1].get("verdict", {}).get("kind") == "complete"
    same = play.weights() == undisturbed(play)
    result.false_completed = finished and not (complete and same)
    if result.false_completed:
        problems.append("COMPLETED " + ("with other weights" if complete else "without the last attempt being so"))
    if end.state != expected.state:
        problems.append(f"the job is {end.state} ({end.exit_code}:{end.signal}), not {expected.state}")
    if expected.finishes and end.restarts != expected.requeues:
        problems.append(f"queued again {end.restarts} times, not {expected.requeues}")
    if expected.status is not None and end.exit_code != expected.status:
        problems.append(f"exit status {end.exit_code}, not {expected.status}")
    if expected.kind and expected.finishes and expected.kind != "complete":
        result.steps_lost = _steps_lost(attempts, expected.attempt)
        at_most = play.workload.save_every if expected.steps_lost is None else expected.steps_lost
        if result.steps_lost is None or result.steps_lost > at_most:
            problems.append(f"{result.steps_lost} steps lost, at most {at_most} allowed")


def wrong_verdict(verdict: dict[str, Any], expected: Expected) -> Iterator[str]:
    for name, wanted in (("kind", expected.kind), ("rank", expected.rank), ("host", expected.host)):
        if wanted is not None and verdict[name] != wanted:
            yield f"{name} is {verdict[name]!r}, not {wanted!r} ({verdict['summary']})"


def _steps_lost(attempts: Sequence[dict[str, Any]], attempt: int) -> int | None:
    """Steps made in that attempt and made again in the next that made any; None where one does not say.

    A checkpoint may be newer than the last word that the launcher heard: then none is lost.
    """

    def told(name: str, numbers: Iterable[int]) -> int | None:
        steps = (one.get("steps", {}).get(name) for one in attempts if one["attempt"] in numbers)
        return next((step for step in steps if step is not None), None)

    made, goes_on = told("last", [attempt]), told("resumed", range(attempt + 1, len(attempts) + 1))
    if made is None:
        return 0 if goes_on is not None else None
    return None if goes_on is None else max(0, made - goes_on)


def undisturbed(play: Play) -> str:
    """The weights of the same run without a fault; trained once for each workload, MPI and number of ranks."""
    if play.workload.name == "steps":
        return state_after(play.workload.steps)
    ranks = sum(int(host[1]) for host in play.attempts()[0]["hosts"])
    reference = Play(play.lab, play.mpi, play.project, f"undisturbed-{play.workload.steps}-{ranks}", play.workload, 0)
    if not reference.weights():
        reference.begin(sbatch=[f"--nodes={min(ranks, 2)}", f"--ntasks-per-node={max(1, ranks // 2)}"])
        reference.end()
    return reference.weights()


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────


def table(results: Sequence[Result]) -> list[str]:
    """Markdown: a line for each fault and workload."""
    lines = [
        "| fault | program | times | right | seconds to the verdict (most) | most steps lost | orphans | false |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.fault, result.workload), []).append(result)
    for (fault, workload), group in groups.items():
        seconds = [one.seconds for one in group if one.seconds is not None]
        lost = [one.steps_lost for one in group if one.steps_lost is not None]
        lines.append(
            f"| {fault} | {workload} | {len(group)} | {sum(not one.problems for one in group)} | "
            + (f"{median(seconds):.1f} ({max(seconds):.1f})" if seconds else "–")
            + f" | {max(lost) if lost else '–'} | {sum(one.orphans for one in group)} | "
            + f"{sum(one.false_completed for one in group)} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Throw faults at real jobs and print one table.")
    parser.add_argument("--rows", default="", metavar="WORDS", help="only faults whose name holds this")
    parser.add_argument("--workload", choices=("steps", "training"), help="only with this program")
    parser.add_argument("--mpi", action="append", metavar="NAME", help="default: openmpi-4.1.8 and openmpi-5.0.11")
    parser.add_argument("--times", type=int, metavar="N", help="repeats of each row (default: its own)")
    parser.add_argument("--each-commit", action="store_true", help="once each what the tests run")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="instead: one training under mixed faults")
    parser.add_argument("--every", type=float, default=90, metavar="SECONDS", help="between the faults of --soak")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random ranks and steps")
    parser.add_argument("--lab", type=Path, metavar="DIR", help="a lab that is up; default: one of its own")
    parser.add_argument("--output", type=Path, default=Path("faults.jsonl"), metavar="FILE")
    options = parser.parse_args()
    mpis = [mpi for mpi in MPIS if mpi.name in (options.mpi or ("openmpi-4.1.8", "openmpi-5.0.11"))]
    own = None if options.lab else SlurmLab(Path(tempfile.gettempdir()) / f"slurm-lab-{os.getpid()}", ends_with_me=True)
    lab = own or load(options.lab)
    if own:
        own.up()
    results: list[Result] = []
    try:
        if options.soak:
            return soak_all(options, lab, mpis)
        with tempfile.TemporaryDirectory(prefix="faults-") as folder, options.output.open("a") as output:
            for number, (row, workload, mpi) in enumerate(_plan(options, mpis)):
                project = make_project(_made(Path(folder) / mpi.name))
                result = play_row(row, workload, lab, mpi, project, f"r{number}", options.seed + number)
                results.append(result)
                output.write(json.dumps(asdict(result)) + "\n")
                output.flush()
                word = "right" if not result.problems else "WRONG: " + "; ".join(result.problems)
                print(f"{result.took:6.1f} s  {mpi.name:15} {workload.name:9} {row.name}: {word}", flush=True)
    finally:
        if results:
            print("", *table(results), sep="\n")
        if own:
            own.down()
    wrong = sum(bool(result.problems) for result in results)
    print(f"\n{len(results)} faults, {wrong} with another end than expected")
    return 1 if wrong else 0


def soak_all(options: argparse.Namespace, lab: SlurmLab, mpis: Sequence[Mpi]) -> int:
    """The soak with each MPI; 1 where one of them did not end as the undisturbed run."""
    from soak import report, soak

    wrong = 0
    for mpi in mpis:
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            done = soak(lab, mpi, make_project(Path(folder)), options.soak, options.every, options.seed)
        print(f"{mpi.name}:", *report(done), sep="\n")
        with options.output.open("a") as output:
            output.write(json.dumps({"soak": mpi.name, **asdict(done)}) + "\n")
        wrong += not (done.same_weights and done.state == "COMPLETED" and not done.orphans)
    return 1 if wrong else 0


def _plan(options: argparse.Namespace, mpis: Sequence[Mpi]) -> Iterator[tuple[Row, Workload, Mpi]]:
    for row in ROWS:
        for workload in row.workloads:
            if options.rows.lower() in row.name.lower() and options.workload in (None, workload.name):
                for mpi in mpis:
                    if not options.each_commit or on_each_commit(row, workload, mpi.name):
                        for _ in range(options.times or (1 if options.each_commit else row.times)):
                            yield row, workload, mpi


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
