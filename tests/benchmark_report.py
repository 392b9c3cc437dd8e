"""How long a report takes to write and to open, all of its plots drawn, in headless Chromium; and how large it is.

python tests/benchmark_report.py --ranks 16 --steps 10000
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from browser import Browser
from report_runs import make_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("Chromium is not installed (Debian: chromium)")
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", steps=options.steps, ranks=options.ranks)
        page = run / "report.html"
        browser = Browser(program, Path(folder) / "profile")
        try:
            write = [sys.executable, "-m", "training.report", str(run)]
            written = timed(options.rounds, lambda: subprocess.run(write, stdout=subprocess.DEVNULL, check=True))
            opened = timed(options.rounds, lambda: browser.open(page))
        finally:
            browser.close()
        print(f"report of {options.ranks} ranks × {options.steps:,} steps, {options.rounds} rounds")
        print(f"size         {page.stat().st_size / 1e6:.2f} MB (goal: less than 3)")
        print(f"written in   {written} s")
        print(f"opened in    {opened} s (goal: less than 2)")


def timed(rounds: int, step: Callable[[], object]) -> str:
    """Seconds that a step takes: the median, the least and the most."""
    seconds: list[float] = []
    for _ in range(rounds):
        begun = time.monotonic()
        step()
        seconds.append(time.monotonic() - begun)
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
