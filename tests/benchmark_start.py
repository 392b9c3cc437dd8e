"""From mpirun's start to the first optimizer step: two ranks beside one, in turns.

    python tests/benchmark_start.py [ROUNDS]

Each round starts the same small training once on one rank and once on two, on this machine. What is printed are
seconds to the first row of metrics.jsonl, and their ratio, as the median with the smallest and largest.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1.15


def seconds_to_first_step(ranks: int, folder: Path) -> float:
    metrics = folder / "run/metrics.jsonl"
    command = [sys.executable, "-m", "cluster.launch", "--cluster", "local", "--ranks-per-node", str(ranks), "--"]
    command += ["python", "-m", "training.train_llm", "--preset", "smoke", "--max-steps", "1", "--device", "cpu"]
    command += ["--output-dir", str(folder), "--experiment-name", "run"]
    begun = time.monotonic()
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (metrics.exists() and metrics.stat().st_size):
        if launcher.poll() is not None:
            sys.exit(f"the run on {ranks} ranks ended with status {launcher.returncode} before its first step")
        time.sleep(0.002)
    seconds = time.monotonic() - begun
    launcher.wait()
    return seconds


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f}  ({min(values):.2f} to {max(values):.2f})"


def main(rounds: int) -> None:
    measured: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds + 1):  # the first round warms the file cache and is not counted
        for ranks, seconds in measured.items():
            with tempfile.TemporaryDirectory() as folder:
                taken = seconds_to_first_step(ranks, Path(folder))
            if number:
                seconds.append(taken)
    ratios = [two / one for one, two in zip(measured[1], measured[2], strict=True)]
    print(f"to the first step, median of {rounds} rounds (smallest to largest)")
    print(f"1 rank    {spread(measured[1])} s")
    print(f"2 ranks   {spread(measured[2])} s")
    print(f"ratio     {spread(ratios)}      goal: at most {GOAL}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
