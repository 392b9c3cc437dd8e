"""How long `status` takes over many runs, with long metrics files and a long queue: seconds, Python's start included.

python tests/benchmark_status.py --runs 200 --steps 10000 --jobs 10000
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster.goodput import PARTS


def write_runs(output_dir: Path, runs: int, steps: int) -> None:
    """Every fourth is queued again, the others are complete; each had two attempts on 16 hosts."""
    output_dir.mkdir()
    phases = {f"{phase}_seconds": 0.012345 for phase in ("data", "forward", "backward", "agree", "update", "step")}
    row = {"epoch": 1.234567, "loss": 3.1, "lr": 1e-4, "grad_norm": 1.0, "tokens_per_second": 5e5, **phases}
    metrics = output_dir / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": step, **row}) + "\n" for step in range(1, steps + 1)))
    for number in range(runs):
        run_dir = output_dir / f"run-{number}"
        run_dir.mkdir()
        os.link(metrics, run_dir / "metrics.jsonl")
        (run_dir / "config.json").write_text(json.dumps({"config": {"max_steps": 2 * steps, "num_epochs": 3.0}}))
        (run_dir / "launcher.lock").write_text("process 1 on n1\n")
        kind = "complete" if number % 4 else "saved for requeue"
        attempt = {
            "started": 1e9,
            "ended": 1e9 + 3600,
            "seconds": 3600.0,
            "job_id": str(number + 1),
            "hosts": [[f"n{host}", 8, 8, 64] for host in range(16)],
            "verdict": {"kind": kind, "status": 0, "summary": "", "rank": None, "host": None, "next": None},
            "steps": {"resumed": 0, "last": steps, "saved": steps},
            "accounting": {**dict.fromkeys(PARTS, 10.0), "train": 3500.0},
        }
        attempts = [{"attempt": 1, **attempt}, {"attempt": 2, **attempt}]
        (run_dir / "run.json").write_text(json.dumps({"experiment": run_dir.name, "attempts": attempts}, indent=1))
        events = [{"event": "verdict"}, {"event": "requeue"}]
        (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def write_squeue(folder: Path, jobs: int) -> None:
    """A squeue that tells of so many jobs, and counts how often it is asked."""
    lines = (f"{job}|PENDING|Priority|N/A|gpu|{4294901757 - job}|{job}|N/A\n" for job in range(1, jobs + 1))
    (folder / "queue").write_text("".join(lines))
    (folder / "squeue").write_text(f"#!/bin/sh\necho >> {folder}/asked\nexec cat {folder}/queue\n")
    (folder / "squeue").chmod(0o755)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10_000, help="rows of each metrics.jsonl")
    parser.add_argument("--jobs", type=int, default=10_000, help="in the queue")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_runs(folder / "outputs", options.runs, options.steps)
        write_squeue(folder, options.jobs)
        seconds = []
        for _ in range(options.rounds):
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "cluster", "status", "--output-dir", str(folder / "outputs")],
                env={**os.environ, "PATH": f"{folder}:/usr/bin:/bin"},
                capture_output=True,
                text=True,
                check=True,
            )
            seconds.append(time.perf_counter() - begin)
        asked = len((folder / "asked").read_text().splitlines()) / options.rounds
        print(*done.stdout.splitlines()[:3], sep="\n")
        print(
            f"{len(done.stdout.splitlines()) - 1} runs, metrics of {options.steps:,} rows, {options.jobs:,} jobs queued"
        )
        spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"status  {statistics.median(seconds):.2f} {spread} s, squeue asked {asked:g} times")


if __name__ == "__main__":
    main()
