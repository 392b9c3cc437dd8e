"""What CUDA graphs gain a step of GPT-2: its speed with recorded passes over that with called ones.

    python tests/benchmark_passes.py [ROUNDS [SEQUENCES …]]

GPT-2 with 124M parameters on one GPU, 1, 2, 4, 8, 16, 32 and 64 sequences of 1024 tokens (unless given), with dropout
of 0.1. Both are measured in one process in turns, after a round that only warms up and records. Printed are the median
with the smallest and largest of the rounds.
"""

import sys
import time
from typing import Literal

import torch
from benchmark_checkpoint import spread

from training.bench.options import SIZES
from training.bench.ours import Ours
from training.bench.rounds import rotated
from training.bench.setting import Setting, synthetic_tokens
from training.device import device_name
from training.ranks import RankInfo

STEPS, LENGTH = 10, 1024
CHOICES: list[Literal["off", "on"]] = ["off", "on"]


def measure(device: torch.device, rounds: int, sequences: int) -> None:
    """Print one line for this many sequences."""
    size = SIZES["gpt2"]
    setting = Setting(
        size=size, batch_size=sequences, length=LENGTH, dropout=0.1, compiled=False, device=device,
        ranks=RankInfo.from_env({}), tokens=synthetic_tokens(size.vocabulary, 2**22, 0), seed=0,
    )  # fmt: skip
    subjects = {choice: Ours(setting, "auto", compiled=False, cuda_graphs=choice) for choice in CHOICES}
    seconds: dict[str, list[float]] = {choice: [] for choice in CHOICES}
    for number in range(rounds + 1):
        for choice in rotated(CHOICES, number):
            subjects[choice].steps(2)
            torch.cuda.synchronize()
            begun = time.perf_counter()
            subjects[choice].steps(STEPS)
            torch.cuda.synchronize()
            if number:
                seconds[choice].append((time.perf_counter() - begun) / STEPS)
    ratios = [called / recorded for called, recorded in zip(*seconds.values(), strict=True)]
    called, recorded = (spread([1e3 * one for one in of]) for of in seconds.values())
    print(
        f"{sequences:>3} × {LENGTH} tokens   called {called} ms   recorded {recorded} ms   {spread(ratios)}", flush=True
    )
    for subject in subjects.values():
        subject.close()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("CUDA graphs need a GPU, and there is none")
    gpu = torch.device("cuda", 0)
    count, *given = [int(argument) for argument in sys.argv[1:]] or [7]
    print(f"GPT-2 on {device_name(gpu)}, {count} rounds")
    for each in given or (1, 2, 4, 8, 16, 32, 64):
        measure(gpu, count, each)
        torch.cuda.empty_cache()
