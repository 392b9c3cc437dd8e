"""Compare our training step with what a user would pick instead, and with the machine's limits: the whole bench.

    python -m training.bench
    python -m training.bench --subjects ours nanogpt limits --batch-sizes 16 32 64 --json bench.json
    python -m cluster.launch -- python -m training.bench

All subjects train in this process, in turns. Exit status: 0 also where a subject failed, which then has its reason in
place of figures; 64 the request is wrong.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from training.bench.options import BenchOptions, options_from_argv
from training.command import run_on_ranks
from training.errors import InputError
from training.ranks import RankInfo
from training.teardown import exit_with
from training.whole_file import write_json


def main(argv: Sequence[str]) -> int:
    """Carry out the bench that the command line describes; the process's exit status."""

    def work(ranks: RankInfo) -> None:
        options = options_from_argv(argv)
        if options.start and ranks.world_size > 1:
            raise InputError(f"--start {options.start} starts processes of its own: give it to one rank alone")
        if options.json is not None and not options.json.absolute().parent.is_dir():
            raise InputError(
                f"--json {options.json}: there is no folder {options.json.absolute().parent}; make it first"
            )
        run(options, ranks)

    return run_on_ranks(work)


def run(options: BenchOptions, ranks: RankInfo) -> dict[str, Any]:
    """Measure, print, and return all figures, as they stand in the JSON file."""
    begun = time.monotonic()
    import torch
    import transformers

    from training import process_group
    from training.bench import report
    from training.bench.compare import Comparison, Progress
    from training.bench.limits import parameters
    from training.bench.setting import Setting, synthetic_tokens
    from training.bench.start import measure_start
    from training.device import device_name, own_device, share_cpus
    from training.display import on_a_terminal
    from training.flops import flops_per_token, peak_flops
    from training.joining import Joining
    from training.model import quiet_libraries

    # The ranks, each on its device.
    share_cpus(ranks)
    device, _ = Joining(ranks, lambda: own_device(options.device, ranks)).finish()
    gpu = device.type == "cuda"
    if gpu:
        # nanoGPT allows TF32, and so does the Trainer under compile, for the whole process. One rule for all: a change
        # between turns would have each subject compiled anew. Under bfloat16 autocast hardly a product is left for it.
        torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    quiet_libraries()
    bench = options.resolved(gpu)
    progress = Progress(begun, bench.seconds_limit, says=ranks.rank == 0)

    # What all of them train on.
    size, length = bench.size, bench.seq_length
    multiplied = parameters(size) - size.positions * size.width
    flops = flops_per_token(multiplied, size.layers, size.heads, size.width // size.heads, length)
    sequences = max(4096 if gpu else 256, 2 * ranks.world_size * max(bench.batch_sizes))
    tokens = synthetic_tokens(size.vocabulary, sequences * length, bench.seed)
    result: dict[str, Any] = {
        "format": report.FORMAT,
        "device": device_name(device),
        "ranks": ranks.world_size,
        "precision": "bfloat16" if gpu else "float32",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "options": bench.to_json(),
        "parameters": parameters(size),
        "flops_per_token": flops,
        "peak_flops": peak_flops(device_name(device)),
        "limits": [],
        "rows": [],
        "best": [],
        "starts": [],
    }

    def keep() -> None:
        if bench.json is not None and ranks.rank == 0:
            write_json(bench.json, result)

    # One batch size after another; at each, all subjects in turns.
    progress.say(report.heading(result))
    for batch_size in bench.batch_sizes:
        setting = Setting(size, batch_size, length, bench.dropout, bench.compile, device, ranks, tokens, bench.seed)
        comparison = Comparison(bench, setting, progress, flops, result["peak_flops"])
        before = {"rows": result["rows"], "limits": result["limits"]}

        def add(comparison: Comparison = comparison, before: dict[str, Any] = before) -> None:
            result["rows"] = before["rows"] + comparison.subject_rows()
            result["limits"] = before["limits"] + comparison.limit_rows()
            result["best"] = report.best_rows(result["rows"])
            keep()

        comparison.run(add)

    # New processes, now that the device is free.
    for name in bench.trained if bench.start else []:
        progress.say(f"{name}: first step in {bench.start} pairs of new processes")
        result["starts"].append(measure_start(name, bench, device.type, progress))
        keep()

    if ranks.rank == 0:
        report.show(result, on_a_terminal(ranks.launcher))
    process_group.leave()
    return result


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
