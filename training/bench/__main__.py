"""Compare our training step with what a user would pick instead, and with the machine's limits: the whole bench.

    python -m training.bench
    python -m training.bench --subjects ours nanogpt limits --batch-sizes 16 32 64 --json bench.json
    python -m cluster.launch -- python -m training.bench

All subjects train in this process, in turns. Exit status: 0 also where a subject failed, which then has its reason in
place of figures; 64 the request is wrong.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from training.bench.options import LIMITS, OURS, BenchOptions, Bench, options_from_argv
from training.errors import COMPLETE, INPUT_ERROR, InputError
from training.ranks import RankInfo, check_rendezvous
from training.teardown import exit_with

SEQUENCES = 4096
"""In the synthetic data, at least; more where one step of all ranks takes more."""


def main(argv: Sequence[str]) -> int:
    """Carry out the bench that the command line describes; the process's exit status."""
    try:
        options = options_from_argv(argv)
        ranks = RankInfo.from_env(os.environ)
        check_rendezvous(ranks, os.environ)
        if options.start and ranks.world_size > 1:
            raise InputError(f"--start {options.start} starts processes of its own: leave it out, or start one rank alone")
        if options.json is not None and not options.json.absolute().parent.is_dir():
            raise InputError(f"--json {options.json}: there is no folder {options.json.absolute().parent}; make it")
        run(options, ranks)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return INPUT_ERROR
    return COMPLETE


def run(options: BenchOptions, ranks: RankInfo) -> dict[str, Any]:
    """Measure, print, and return all figures, as they stand in the JSON file."""
    begun = time.monotonic()
    import torch
    import torch._dynamo
    import transformers

    from training import process_group
    from training.bench import report, rounds
    from training.bench.limits import MATRIX, limits, parameters
    from training.bench.setting import Setting, synthetic_tokens
    from training.bench.start import measure_start
    from training.device import choose_device, device_name, threads_per_rank
    from training.display import on_a_terminal
    from training.flops import flops_per_token, peak_flops
    from training.model import quiet_libraries

    # The ranks, each on its device.
    process_group.set_threads(threads_per_rank(len(os.sched_getaffinity(0)), ranks))
    device, _ = process_group.join(
        ranks,
        lambda: choose_device(options.device, ranks, torch.cuda.device_count(), os.environ),  # type: ignore[arg-type]
    )
    bench = options.resolved(gpu=device.type == "cuda")
    if device.type == "cuda":
        # nanoGPT allows TF32, and so does the Trainer under compile, for the whole process. One rule for all: a change
        # between turns would have each subject compiled anew. Under bfloat16 autocast hardly a product is left for it.
        torch.backends.fp32_precision = "tf32"
    quiet_libraries()

    def say(text: str) -> None:
        if ranks.rank == 0:
            print(f"[{time.monotonic() - begun:6.1f} s] {text}", flush=True)

    def left() -> float:
        """Seconds of the limit, as rank 0 counts them."""
        return process_group.rank_zero_first(lambda: begun + bench.seconds_limit - time.monotonic())

    # What all of them train on.
    size = bench.size
    heads, multiplied = size.heads, parameters(size) - size.positions * size.width
    per_token = flops_per_token(multiplied, size.layers, heads, size.width // heads, bench.seq_length)
    sequences = max(SEQUENCES if device.type == "cuda" else 256, 2 * ranks.world_size * max(bench.batch_sizes))
    tokens = synthetic_tokens(size.vocabulary, sequences * bench.seq_length, bench.seed)
    result: dict[str, Any] = {
        "format": report.FORMAT,
        "device": device_name(device),
        "ranks": ranks.world_size,
        "precision": "bfloat16" if device.type == "cuda" else "float32",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "options": bench.to_json(),
        "parameters": parameters(size),
        "flops_per_token": per_token,
        "peak_flops": peak_flops(device_name(device)),
        "limits": [],
        "rows": [],
        "best": [],
        "starts": [],
    }
    say(report.heading(result))

    # One batch size after another; at each, all subjects in turns.
    for batch_size in bench.batch_sizes:
        setting = Setting(size, batch_size, bench.seq_length, bench.dropout, bench.compile, device, ranks, tokens, bench.seed)
        names = [name for name in bench.subjects if name != LIMITS]
        park = rounds.must_park(len(names), parameters(size), device)
        measured: list[rounds.Turns] = []
        bounds = limits(setting) if LIMITS in bench.subjects else []
        rates: dict[str, list[float]] = {bound.name: [] for bound in bounds}

        def keep(
            done: Sequence[dict[str, Any]] = tuple(result["rows"]),
            known: Sequence[dict[str, Any]] = tuple(result["limits"]),
        ) -> None:
            """The figures as far as they are known, to the file too."""
            matrix = report.spread(rates.get(MATRIX, []))
            ours = next((turns for turns in measured if turns.name == OURS and not turns.failed), None)
            rate = matrix and matrix["median"]
            result["limits"] = [
                *known,
                *(report.limit_row(one.name, one.what, one.unit, batch_size, rates[one.name]) for one in bounds),
            ]
            result["rows"] = [
                *done,
                *(report.subject_row(turns, ours, per_token, result["peak_flops"], rate) for turns in measured),
            ]
            result["best"] = report.best_rows(result["rows"])
            if bench.json is not None and ranks.rank == 0:
                report.write_json(bench.json, result)

        longest = 0.0
        for name in names:
            if left() < 1.5 * longest:
                turns = rounds.Turns(name, batch_size, failed=f"no time left of --seconds-limit {bench.seconds_limit:g}")
            else:
                say(f"batch {batch_size}: {name} is built")
                since = time.monotonic()
                turns = rounds.build(name, setting, builder(name))
                longest = max(longest, time.monotonic() - since)
            measured.append(turns)
            if turns.failed is None:
                say(f"batch {batch_size}: {name}: first step after {turns.first_step_seconds:.1f} s")
                if park and turns.subject is not None:
                    rounds.move(turns.subject, torch.device("cpu"))
            else:
                say(f"batch {batch_size}: {name}: {turns.failed}")
            keep()

        for number in range(bench.rounds):
            if number and left() < 0:
                say(f"batch {batch_size}: no time left of --seconds-limit {bench.seconds_limit:g} after {number} rounds")
                break
            for turns in rounds.rotated([one for one in measured if one.subject is not None], number):
                if park:
                    rounds.move(turns.subject, device)
                rounds.take_turn(turns, bench.steps_per_round, setting)
                if park and turns.subject is not None:
                    rounds.move(turns.subject, torch.device("cpu"))
            for bound in bounds:
                rates[bound.name].append(rounds.measure_limit(bound, device))
            keep()
            say(f"batch {batch_size}: round {number + 1} of {bench.rounds}")

        for turns in measured:
            rounds.free(turns)
        torch._dynamo.reset()

    # New processes, now that the GPU is free.
    for name in [name for name in bench.subjects if name != LIMITS] if bench.start else []:
        say(f"first step of {name} in {bench.start} pairs of new processes")
        result["starts"].append(measure_start(name, bench, device.type, max(1.0, left())))
        if bench.json is not None:
            report.write_json(bench.json, result)

    if ranks.rank == 0:
        report.show(result, on_a_terminal(ranks.launcher))
    process_group.leave()
    return result


def builder(name: str) -> Callable[[Any], Any]:
    """What builds a subject; each one's libraries are imported only for it."""

    def build(setting: Any) -> Any:
        if name in ("ours", "ours-eager"):
            from dataclasses import replace

            from training.bench.ours import Ours

            return Ours(setting if name == "ours" else replace(setting, compiled=False))
        if name in ("nanogpt", "nanogpt-nobias"):
            from training.bench.nanogpt import NanoGPTStep

            return NanoGPTStep(setting, bias=name == "nanogpt")
        if name == "trainer":
            from training.bench.trainer import TrainerStep

            return TrainerStep(setting)
        from training.bench.chapter import Chapter

        return Chapter(setting)

    return build


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
