"""How long a start takes: the front end beside bare Python, and two ranks beside one to their first step.

    python tests/benchmark_start.py [ROUNDS]

What is compared runs in turns, after one round that only warms the file cache. Printed are the median with the
smallest and largest of the rounds.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FRONT_END_GOAL = 5.0
RANKS_GOAL = 1.15


def seconds_of(*arguments: str) -> float:
    """From the start of this Python with these arguments to its end."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sbatch").symlink_to("/bin/false")  # so that a dry run is one for Slurm
        environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        begun = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begun


def seconds_to_first_step(ranks: int) -> float:
    """From the launcher's start to the first row of metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "run/metrics.jsonl")
        command = [sys.executable, "-m", "cluster.launch", "--cluster", "local", "--ranks-per-node", str(ranks), "--"]
        command += ["python", "-m", "training.train_llm", "--preset", "smoke", "--max-steps", "1", "--device", "cpu"]
        command += ["--output-dir", folder, "--experiment-name", "run"]
        begun = time.perf_counter()
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not (metrics.exists() and metrics.stat().st_size):
            if launcher.poll() is not None:
                sys.exit(f"the run on {ranks} ranks ended with status {launcher.returncode} before its first step")
            time.sleep(0.002)
        seconds = time.perf_counter() - begun
        launcher.wait()
    return seconds


def compare(rounds: int, goal: float, **measured: Callable[[], float]) -> None:
    """Measure each in turn; the first is what the others are compared with."""
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(rounds + 1):
        for name, measure in measured.items():
            taken = measure()
            if number:
                seconds[name].append(taken)
    base, *others = seconds
    print(f"{base:<12} {spread(seconds[base])} s")
    for name in others:
        ratios = [one / reference for reference, one in zip(seconds[base], seconds[name], strict=True)]
        print(f"{name:<12} {spread(seconds[name])} s   {spread(ratios)} times {base} (goal: at most {goal})")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main(rounds: int) -> None:
    print(f"start of the front end, {3 * rounds} rounds")
    compare(
        3 * rounds,
        FRONT_END_GOAL,
        python=lambda: seconds_of("-c", "pass"),
        help=lambda: seconds_of("-m", "cluster.submit", "--help"),
        dry_run=lambda: seconds_of("-m", "cluster.submit", "--cluster", "slurm", "--dry-run"),
    )
    print(f"from the launcher's start to the first step, {rounds} rounds")
    compare(rounds, RANKS_GOAL, one_rank=lambda: seconds_to_first_step(1), two_ranks=lambda: seconds_to_first_step(2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
