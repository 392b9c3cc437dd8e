"""`logs --follow` of many ranks: lines lost, lag and memory, while one process plays all ranks at a steady rate.

python tests/benchmark_logs.py --ranks 1024 --lines 20 --seconds 30
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from cluster.lock import only_launcher_of

TICKS = 10
"""Times a second that every rank writes."""
TEXT = "step 12345/100000 · loss 3.1415 · lr 2.86e-04 · 531,909 tokens/s · 0:31 passed · ETA 0:37"


def write_run(run_dir: Path, ranks: int) -> Path:
    """A run whose first attempt has just begun; the directory of its logs."""
    log_dir = run_dir / "attempt-0001/logs"
    log_dir.mkdir(parents=True)
    plan = {"log_dir": str(log_dir), "source": "slurm", "hosts": [["n1", ranks, 0, 0]]}
    (run_dir / "attempt-0001/plan.json").write_text(json.dumps(plan))
    write_run_file(run_dir, {})
    return log_dir


def write_run_file(run_dir: Path, verdict: dict[str, object]) -> None:
    attempt = {"attempt": 1, "started": time.time(), **({"verdict": verdict} if verdict else {})}
    (run_dir / "run.json").write_text(json.dumps({"experiment": run_dir.name, "attempts": [attempt]}))


def play(log_dir: Path, ranks: int, lines: int, seconds: float) -> float:
    """Write as the ranks would, each line with its time; seconds by which it fell behind its own rate."""
    per_tick = max(1, lines // TICKS)
    begin, late = time.monotonic(), 0.0
    for tick in range(int(seconds * TICKS)):
        pause = begin + tick / TICKS - time.monotonic()
        late = max(late, -pause)
        time.sleep(max(0.0, pause))
        for rank in range(ranks):
            text = "".join(f"{tick * per_tick + n} {time.time():.3f} {TEXT}\n" for n in range(per_tick))
            file = os.open(log_dir / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(file, text.encode())
            os.close(file)
    return late


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--lines", type=int, default=20, help="lines a second of each rank")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--open-files", type=int, default=256, help="descriptors that the follower may have")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        run_dir = Path(folder) / "a"
        log_dir = write_run(run_dir, options.ranks)
        command = [sys.executable, "-m", "cluster", "logs", str(run_dir), "--follow"]
        seen: dict[int, list[int]] = {rank: [] for rank in range(options.ranks)}
        lags: list[float] = []

        with only_launcher_of(run_dir):
            follower = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (options.open_files,) * 2),  # noqa: PLW1509
            )

            def read() -> None:
                assert follower.stdout is not None
                for line in follower.stdout:
                    rank, number, written, *rest = line.split(None, 3)
                    assert rest == [TEXT.encode() + b"\n"], line
                    seen[int(rank[:-1])].append(int(number))
                    lags.append(time.time() - float(written))

            reader = threading.Thread(target=read)
            reader.start()
            late = play(log_dir, options.ranks, options.lines, options.seconds)
            write_run_file(run_dir, {"kind": "complete", "status": 0})
        reader.join()
        follower.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    expected = int(options.seconds * TICKS) * max(1, options.lines // TICKS)
    lost = sum(expected - len(set(numbers)) for numbers in seen.values())
    double = sum(len(numbers) - len(set(numbers)) for numbers in seen.values())
    disordered = sum(numbers != sorted(numbers) for numbers in seen.values())
    lags.sort()
    print(f"{options.ranks} ranks × {expected / options.seconds:.0f} lines/s for {options.seconds:.0f} s")
    shown = sum(map(len, seen.values()))
    print(f"lines     {shown:,} shown, {lost} lost, {double} twice, {disordered} ranks out of order")
    print(f"lag       {lags[len(lags) // 2]:.2f} s median, {lags[-1]:.2f} s at most (the writers' own: {late:.2f} s)")
    print(f"memory    {used.ru_maxrss / 1024:.0f} MB at most, {options.open_files} open files allowed")
    print(f"CPU       {(used.ru_utime + used.ru_stime) / options.seconds:.0%} of one core")
    return 1 if lost or double or disordered else 0


if __name__ == "__main__":
    sys.exit(main())
