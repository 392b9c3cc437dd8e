"""One batch size: all subjects are built, then take turns until the rounds, or the time, are over."""

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch._dynamo

from training.bench import report, rounds
from training.bench.limits import MATRIX, Limit, limits
from training.bench.options import LIMITS, OURS, Bench
from training.bench.setting import Setting, Subject
from training.errors import InputError
from training.process_group import rank_zero_first


class Progress:
    """What is said while it runs, and the time that is left; rank 0 alone speaks, and its clock decides for all."""

    def __init__(self, begun: float, seconds_limit: float, says: bool) -> None:
        """`begun`: when the time began, by `time.monotonic`."""
        self._begun, self._limit, self._says = begun, seconds_limit, says

    def say(self, text: str) -> None:
        """A line, with the seconds since the beginning."""
        if self._says:
            print(f"[{time.monotonic() - self._begun:6.1f} s] {text}", flush=True)

    def left(self) -> float:
        """Seconds of the limit, the same on every rank; all of them ask."""
        return rank_zero_first(lambda: self._begun + self._limit - time.monotonic())


class Comparison:
    """The subjects at one batch size, and what is known of them so far."""

    def __init__(self, bench: Bench, setting: Setting, progress: Progress, flops: float, peak: float | None) -> None:
        """
        Args:
            bench: what is wanted.
            setting: what each subject is given.
            progress: told what happens.
            flops: of the model, a token.
            peak: the device's FLOP/s by its data sheet, where known.
        """
        self._bench, self._setting, self._progress = bench, setting, progress
        self._flops, self._peak = flops, peak
        self._limits: list[Limit] = limits(setting) if LIMITS in bench.subjects else []
        self._rates: dict[str, list[float]] = {one.name: [] for one in self._limits}
        self._measured: list[rounds.Turns] = []
        self._park = rounds.must_park(len(bench.trained), bench.size, setting.device)

    def run(self, keep: Callable[[], None]) -> None:
        """Build all, then give them their turns; `keep` is called whenever there is a new figure."""
        try:
            longest = 0.0
            for name in self._bench.trained:
                since = time.monotonic()
                self._measured.append(self._build(name, longest))
                # The ranks must agree on who is built, so on this as well.
                longest = max(longest, rank_zero_first(partial(_seconds_since, since)))
                keep()
            for number in range(self._bench.rounds):
                if number and self._progress.left() < 0:
                    self._say(f"the time is over after {number} of {self._bench.rounds} rounds")
                    break
                self._round(number)
                keep()
                self._say(f"round {number + 1} of {self._bench.rounds}")
        finally:
            for turns in self._measured:
                rounds.free(turns)
            torch._dynamo.reset()

    def _say(self, text: str) -> None:
        self._progress.say(f"batch {self._setting.batch_size}: {text}")

    def _build(self, name: str, longest: float) -> rounds.Turns:
        bench = self._bench
        rest = rounds.seconds_of_rounds(self._measured, bench.steps_per_round, bench.rounds)
        # The ranks have measured the steps by their own clocks.
        needed = rank_zero_first(lambda: 1.5 * longest + rest)
        if longest and self._progress.left() < needed:
            reason = f"left out, too little time is left of --seconds-limit {bench.seconds_limit:g}"
            turns = rounds.Turns(name, self._setting.batch_size, failed=reason)
        else:
            self._say(f"{name} is built")
            turns = rounds.build(name, self._setting, partial(make, name, parked=self._park))
            if self._park:
                rounds.park(turns)
        self._say(f"{name}: {turns.failed or f'first step after {turns.first_step_seconds:.1f} s'}")
        return turns

    def _round(self, number: int) -> None:
        for turns in rounds.rotated([one for one in self._measured if one.subject is not None], number):
            rounds.fetch(turns, self._setting.device)
            rounds.take_turn(turns, self._bench.steps_per_round, self._setting)
            if self._park:
                rounds.park(turns)
        for limit in self._limits:
            self._rates[limit.name].append(rounds.measure_limit(limit, self._setting.device))

    def limit_rows(self) -> list[dict[str, Any]]:
        """The machine's limits, as far as they are known."""
        size = self._setting.batch_size
        return [report.limit_row(one.name, one.what, one.unit, size, self._rates[one.name]) for one in self._limits]

    def subject_rows(self) -> list[dict[str, Any]]:
        """The subjects' figures, as far as they are known."""
        ours = next((turns for turns in self._measured if turns.name == OURS and not turns.failed), None)
        matrix = report.median(self._rates.get(MATRIX, []))
        return [report.subject_row(turns, ours, self._flops, self._peak, matrix) for turns in self._measured]


def _seconds_since(moment: float) -> float:
    return time.monotonic() - moment


def make(name: str, setting: Setting, parked: bool = False) -> Subject:
    """Build a subject; what only one of them needs is imported only for it.

    Args:
        name: the subject.
        setting: what each is given.
        parked: between its turns its weights are elsewhere; a recorded pass would look for them where they were.

    Raises:
        InputError: it needs a library that is not installed.
    """
    if name in (OURS, "ours-torch", "ours-eager", "ours-alone"):
        from training.bench.ours import Ours

        if name in (OURS, "ours-alone"):
            graphs: Literal["auto", "off"] = "off" if parked else "auto"
            return Ours(setting, "auto", compiled=False, alone=name != OURS, cuda_graphs=graphs)
        return Ours(setting, "torch", compiled=setting.compiled and name == "ours-torch")
    if name in ("nanogpt", "nanogpt-nobias"):
        from training.bench.nanogpt import NanoGPTStep

        return NanoGPTStep(setting, bias=name == "nanogpt")
    if name == "trainer":
        if importlib.util.find_spec("accelerate") is None:
            raise InputError("accelerate is not installed: pip install 'slurm-mpi-train[bench]'")
        from training.bench.trainer import TrainerStep

        return TrainerStep(setting)
    from training.bench.chapter import Chapter

    return Chapter(setting)
