"""How long the first step takes in a new process: with empty compile caches, and with those of a process before."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.bench.compare import Progress
from training.bench.options import Bench
from training.bench.report import spread


def measure_start(name: str, bench: Bench, device: str, progress: Progress) -> dict[str, Any]:
    """Seconds of the first step in pairs of new processes, each an ordinary bench of this subject alone.

    Args:
        name: the subject.
        bench: how it is built; of the batch sizes the first one counts.
        device: as --device.
        progress: knows the time that is left, which no process outlives.
    """
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(bench.start):
        with tempfile.TemporaryDirectory() as caches:
            for seconds in (cold, warm):
                answer = _first_step(name, bench, device, Path(caches), max(1.0, progress.left()))
                if isinstance(answer, str):
                    return {"subject": name, "cold_seconds": None, "warm_seconds": None, "failed": answer}
                seconds.append(answer)
    return {"subject": name, "cold_seconds": spread(cold), "warm_seconds": spread(warm), "failed": None}


def _first_step(name: str, bench: Bench, device: str, caches: Path, within: float) -> float | str:
    """Its seconds, or why there are none."""
    figures = caches / "bench.json"
    environ = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    command = [sys.executable, "-m", "training.bench", *arguments(name, bench, device), "--json", str(figures)]
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=within)
    except subprocess.TimeoutExpired:
        return f"not done within the {within:.0f} s that were left of --seconds-limit {bench.seconds_limit:g}"
    if done.returncode or not figures.exists():
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    [row] = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    return row["failed"] or row["first_step_seconds"]


def arguments(name: str, bench: Bench, device: str) -> Sequence[str]:
    """Of a bench that builds this subject alone, and makes one short round."""
    return [
        "--subjects", name,
        "--preset", bench.preset,
        "--model", bench.model,
        "--batch-sizes", str(bench.batch_sizes[0]),
        "--seq-length", str(bench.seq_length),
        "--dropout", str(bench.dropout),
        "--compile" if bench.compile else "--no-compile",
        "--rounds", "1",
        "--steps-per-round", "1",
        "--seed", str(bench.seed),
        "--device", device,
    ]  # fmt: skip
