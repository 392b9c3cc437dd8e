"""Whether the trainer's memory grows: its resident size over 10,000 steps, as seen from outside.

    python tests/benchmark_memory.py [STEPS]

The smoke preset on one CPU thread, with all that goes on beside: metrics, heartbeat, an evaluation every 100
steps and a checkpoint every 200. Printed are the medians over each tenth of the run; the first tenth is the warm-up,
and the growth is from the second to the last.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from training.heartbeat import HEARTBEAT_VARIABLE, SIZE

ROOT = Path(__file__).resolve().parents[1]
GOAL_PERCENT = 1.0
TENTHS = 10
SECONDS_BETWEEN_SAMPLES = 0.2


@dataclass(frozen=True)
class Sample:
    """The process at one moment."""

    step: int
    resident: int
    """Bytes."""
    anonymous: int
    """Bytes of them that no file stands behind: what the program itself has asked for."""


def sample(process: int, heartbeat: Path) -> Sample | None:
    """The process now; None before its first step and after its end."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        beat = json.loads(heartbeat.read_text())
    except (OSError, ValueError):
        return None
    if not beat["step"]:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return Sample(beat["step"], kilobytes["Rss"] * 1024, kilobytes["Anonymous"] * 1024)


def watch_training(steps: int) -> list[Sample]:
    """Train, and look on."""
    with tempfile.TemporaryDirectory() as folder:
        heartbeat = Path(folder, "heartbeat")
        heartbeat.write_bytes(b" " * SIZE)
        command = [sys.executable, "-m", "training.train_llm", "--preset", "smoke", "--device", "cpu"]
        command += ["--max-steps", str(steps), "--eval-freq", "100", "--ckpt-freq", "200", "--output-dir", folder]
        # One thread: the model is too small for two, which would only wait for each other on a busy machine.
        environ = {**os.environ, HEARTBEAT_VARIABLE: str(heartbeat), "OMP_NUM_THREADS": "1"}
        trainer = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
        samples: list[Sample] = []
        while trainer.poll() is None:
            seen = sample(trainer.pid, heartbeat)
            if seen is not None and seen.step < steps:
                samples.append(seen)
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    if trainer.returncode:
        sys.exit(f"the training ended with status {trainer.returncode}")
    return samples


def main(steps: int) -> None:
    """Train that many steps and print."""
    samples = watch_training(steps)
    print(f"resident memory of the trainer over {steps:,} steps, {len(samples)} samples")
    medians: list[tuple[float, float]] = []
    for tenth in range(TENTHS):
        low, high = steps * tenth // TENTHS, steps * (tenth + 1) // TENTHS
        part = [one for one in samples if low < one.step <= high]
        if not part:
            sys.exit(f"no sample between the steps {low} and {high}: give more steps")
        resident = [one.resident / 2**20 for one in part]
        anonymous = [one.anonymous / 2**20 for one in part]
        medians.append((statistics.median(resident), statistics.median(anonymous)))
        print(
            f"steps {low + 1:>6}–{high:<6}  {medians[-1][0]:8.2f} ({min(resident):.2f} to {max(resident):.2f}) MiB, "
            f"{medians[-1][1]:.2f} of them anonymous"
        )
    growth = [100 * (last / second - 1) for second, last in zip(medians[1], medians[-1], strict=True)]
    print(f"growth after the first tenth: {growth[0]:+.2f} %, of the anonymous part {growth[1]:+.2f} % ", end="")
    print(f"(goal: under {GOAL_PERCENT:g} %)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
