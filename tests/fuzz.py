"""A coverage-guided fuzzer over every parser of `parsers.py`, for a stated time. By hand: `make fuzz`.

    python tests/fuzz.py --seconds 600 [PARSER …]

Each parser has its share of the time and a process of its own. What it may not do: raise anything but its named error,
take over a second of the processor, or 50 MB. An input that makes it do so is left in `build/fuzz/`.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from parsers import LONGEST_INPUT, MOST_BYTES, PARSERS, Parser, read, seeds  # noqa: E402

FOUND = ROOT / "build/fuzz"


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--one", help=argparse.SUPPRESS)
    options.add_argument("parsers", nargs="*", metavar="PARSER")
    given = options.parse_args()
    if given.one:
        fuzz(next(parser for parser in PARSERS if parser.name == given.one), given.seconds)
    chosen = [parser for parser in PARSERS if not given.parsers or parser.name in given.parsers]
    share = max(1, given.seconds // len(chosen))
    failed = 0
    for parser in chosen:
        command = [sys.executable, __file__, "--one", parser.name, "--seconds", str(share)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        units = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stdout)
        covered = re.findall(r"cov: (\d+)", done.stdout)
        words = "sound" if done.returncode == 0 else "FAILED\n" + done.stdout[-3000:]
        counted = f"{int(units[1]):>9,} inputs" if units else ""
        print(f"{parser.name:<25} {share:>4} s {counted}, {covered[-1] if covered else '?'} edges: {words}", flush=True)
        failed += done.returncode != 0
    return 1 if failed else 0


def fuzz(parser: Parser, seconds: int) -> None:
    """Never returns."""
    import atheris

    with atheris.instrument_imports(include=["cluster", "training", "json", "tomllib"]):
        import json.decoder  # noqa: F401
        import tomllib  # noqa: F401

    folder = tempfile.TemporaryDirectory()
    place = Path(folder.name)
    with atheris.instrument_imports(include=["cluster", "training"]):
        for seed in seeds(parser):
            read(parser, seed, place, trace=False)
    usual = _peak()

    def one(data: bytes) -> None:
        nonlocal usual
        read(parser, data, place, trace=False)
        if _peak() > usual + MOST_BYTES // 2:  # of the fuzzer itself, perhaps: look more closely
            read(parser, data, place, trace=True)
            usual = _peak()

    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(parser)):
            (Path(corpus) / str(number)).write_bytes(seed)
        words = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", "-timeout=10", "-rss_limit_mb=4096"]
        prefix = f"-artifact_prefix={FOUND}/{parser.name.replace(' ', '-')}-"
        atheris.Setup([sys.argv[0], *words, prefix, "-print_final_stats=1", corpus], one)
        atheris.Fuzz()


def _peak() -> int:
    """Bytes of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    os.nice(10)
    sys.exit(main())
