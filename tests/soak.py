"""A long training under mixed faults, unattended, compared with the same training undisturbed."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from conftest import Mpi
from faults import (
    NOTHING_LEFT_WITHIN,
    Expected,
    Play,
    Workload,
    kill_a_rank,
    kill_a_watcher,
    kill_mpirun,
    kill_the_daemon,
    preempt,
    stop_a_rank,
    unplug,
    warn_once,
    wrong_verdict,
)
from slurm_lab import FINAL_STATES, SlurmLab

FAULT_EVERY = 90.0
SHARE_OF_STEPS = 0.6
"""Of the time wanted; the rest goes to the faults."""
FOUR_RANKS = ["--nodes=2", "--ntasks-per-node=2", "--time=600", "--signal=B:USR1@60"]
MIXED: Sequence[Callable[..., Expected]] = (
    *(kill_a_rank, stop_a_rank, unplug, warn_once, kill_mpirun, kill_a_watcher, kill_the_daemon, preempt),
)


@dataclass
class Soak:
    """What came of it."""

    faults: list[dict[str, Any]]
    state: str
    same_weights: bool
    seconds: float
    accounting: dict[str, float]
    """Seconds over all attempts, by what they were spent on."""
    orphans: list[str]

    @property
    def effective(self) -> float:
        """Share of the time, queues included, that went into steps that were kept."""
        return self.accounting.get("train", 0.0) / max(1e-9, sum(self.accounting.values()))


def soak(lab: SlurmLab, mpi: Mpi, project: Path, minutes: float, every: float, seed: int) -> Soak:
    """Train for about so many minutes with a fault every so many seconds.

    Beside it, out of reach of the faults, the same training runs undisturbed: as many ranks, without any Slurm.
    """
    trial = training(100)
    seconds = median(_step_seconds(_in_peace(lab, mpi, project, "trial", trial)))
    workload = training(max(100, round(minutes * 60 * SHARE_OF_STEPS / seconds)))
    print(f"{workload.steps} steps of {seconds * 1000:.0f} ms, 4 ranks on 2 of 4 hosts, a fault every {every:g} s")

    in_peace = _beside(mpi, project, workload)
    play = Play(lab, mpi, project, "soak", workload, seed)
    began = time.monotonic()
    play.begin(sbatch=FOUR_RANKS)
    try:
        faults = list(_throw(play, every, random.Random(seed)))
        end = play.end(minutes * 60 + 900)
        orphans = play.left_after(NOTHING_LEFT_WITHIN)
    except BaseException:
        in_peace.terminate()
        raise
    finally:
        play.leave()
    took = time.monotonic() - began
    accounting: dict[str, float] = {}
    for attempt in play.attempts():
        for name, spent in attempt.get("accounting", {}).items():
            accounting[name] = accounting.get(name, 0.0) + spent
    in_peace.wait()
    undisturbed = Play(lab, mpi, project, "in-peace", workload, seed).weights()
    same = bool(undisturbed) and undisturbed == play.weights()
    return Soak(faults, end.state, same, took, accounting, orphans)


def training(steps: int) -> Workload:
    options = ("--batch-size", "2", "--seq-length", "32", "--max-eval-samples", "8")
    return Workload("training", steps, 100, options)


def _throw(play: Play, every: float, chance: random.Random) -> Any:
    """One fault after another until the job is over; yields what came of each."""
    bag: list[Callable[..., Expected]] = []
    due = time.monotonic() + every / 2
    while True:
        while time.monotonic() < due:
            if play.lab.job(play.job)["JobState"] in FINAL_STATES:
                return
            time.sleep(1.0)
        bag = bag or chance.sample(MIXED, len(MIXED))
        fault = bag.pop()
        try:
            attempt = play.attempts()[-1]["attempt"]
            ranks = play.ranks(attempt)
            expected = fault(play, attempt, max(rank.beat().get("step", 0) for rank in ranks) + 3)
        except (TimeoutError, OSError) as error:
            if play.lab.job(play.job)["JobState"] in FINAL_STATES:
                return
            print(f"  {fault.__name__}: not thrown: {str(error).splitlines()[0]}", flush=True)
            due = time.monotonic() + every
            continue
        due = time.monotonic() + every * chance.uniform(0.7, 1.3)
        if play.attempts()[-1].get("verdict", {}).get("kind") == "complete":
            return  # it came too late
        entry = play.ended(attempt)
        if entry["verdict"]["kind"] == "complete":
            return
        wrong = list(wrong_verdict(entry["verdict"], expected))
        seconds = None if expected.at is None else round(entry["ended"] - expected.at, 1)
        left = play.left_after(NOTHING_LEFT_WITHIN, attempt)
        if fault is preempt:
            play.leave_hosts()
        play.wait(partial(_went_on, play, attempt), "the next attempt", 150)
        play.leave_hosts()
        steps = {one["attempt"]: one.get("steps", {}) for one in play.attempts()}
        outcome = {"fault": fault.__name__, "attempt": attempt, "seconds": seconds, "wrong": wrong, "left": left}
        print(f"  attempt {attempt}: {fault.__name__} at step {steps[attempt].get('last')}: "
              f"{entry['verdict']['kind']} after {seconds} s {'; '.join(wrong + left)}", flush=True)  # fmt: skip
        yield outcome


def _went_on(play: Play, attempt: int) -> bool:
    return bool(play.attempts()[-1]["attempt"] > attempt)


def _beside(mpi: Mpi, project: Path, workload: Workload) -> "subprocess.Popen[bytes]":
    """The workload on this machine: 2 simulated nodes of 2 ranks."""
    command = [sys.executable, "-m", "cluster.launch", "--cluster", "local", "--nodes", "2", "--ranks-per-node", "2"]
    command += ["--mpirun", str(mpi.mpirun), "--experiment-name", "in-peace", "--", *workload.program()]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL)


def _in_peace(lab: SlurmLab, mpi: Mpi, project: Path, name: str, workload: Workload) -> Play:
    play = Play(lab, mpi, project, name, workload, 0)
    try:
        play.begin(sbatch=FOUR_RANKS)
        play.end(7200)
    finally:
        play.leave()
    return play


def _step_seconds(play: Play) -> list[float]:
    rows = [json.loads(line) for line in (play.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["step_seconds"] for row in rows if "step_seconds" in row]


def report(done: Soak) -> list[str]:
    """What the soak showed, in a few lines."""
    right = sum(not (fault["wrong"] or fault["left"]) for fault in done.faults)
    weights = "those" if done.same_weights else "NOT those"
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in done.accounting.items())
    return [
        f"{done.seconds / 60:.0f} minutes, {len(done.faults)} faults, {right} with the right verdict and nothing left",
        f"the job is {done.state}, its weights are {weights} of the undisturbed run, {len(done.orphans)} orphans",
        f"effective training time {done.effective:.0%}: {spent}",
    ]
