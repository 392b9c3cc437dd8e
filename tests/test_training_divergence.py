"""Numbers that are not finite, or out of the ordinary."""

import math
from pathlib import Path

import pytest

from conftest import metrics_of
from forked_ranks import ForkedRanks
from training.divergence import NormWatch, NotFinite, usual_norm
from training.errors import PeerError


def test_the_message_names_ranks_step_and_the_sequences_of_the_batch():
    trouble = NotFinite(5, "loss", math.nan, {2: [17, 4], 3: list(range(20))})
    assert str(trouble) == (
        "the loss is not finite at step 5 on rank 2 (sequences 17, 4), rank 3 (sequences 0, 1, 2, 3, 4, 5, 6, 7 and 12 "
        "more)"
    )


def test_a_guilty_rank_raises_it_itself_and_the_others_say_whose_it_is():
    trouble = NotFinite(5, "gradient", math.inf, {2: [17]})
    assert isinstance(trouble.error(2, 0), FloatingPointError)
    assert isinstance(trouble.error(0, 0), PeerError)
    assert "on rank 2 (sequences 17)" in str(trouble.error(0, 0))


def test_where_nobody_is_found_guilty_all_say_that_it_is_unknown():
    trouble = NotFinite(5, "gradient", math.inf, {})
    assert isinstance(trouble.error(0, 3), FloatingPointError)
    assert "the gradient's norm is inf at step 5, on which rank is unknown" in str(trouble.error(0, 3))
    assert "(skipped before: 3)" in str(trouble.error(0, 3))


def test_a_norm_is_out_of_the_ordinary_over_ten_times_the_median_of_those_before():
    before = [1.0] * 30
    assert usual_norm(10.0, before) is None
    assert usual_norm(10.1, before) == 1.0
    assert usual_norm(1000.0, before[:19]) is None


def test_no_norm_is_out_of_the_ordinary_in_the_first_steps_and_in_the_warm_up():
    watch = NormWatch(warmup=50)
    assert [watch.outlier(step, 100.0 if step == 50 else 1.0) for step in range(1, 70)] == [None] * 69
    assert watch.outlier(70, 1.0) is None
    assert watch.outlier(71, 30.0) == {"step": 71, "event": "grad_norm_outlier", "grad_norm": 30.0, "usual": 1.0}


def test_a_level_that_stays_becomes_the_usual_one():
    watch = NormWatch(warmup=0)
    told = [watch.outlier(step, 1.0 if step <= 100 else 50.0) for step in range(1, 300)]
    assert sum(event is not None for event in told) == 50
    assert told[-100:] == [None] * 100


def test_a_norm_that_is_not_finite_is_not_remembered():
    watch = NormWatch(warmup=0)
    for step in range(30):
        assert watch.outlier(step, math.nan if step % 2 else 1.0) is None


# ── in several ranks ──────────────────────────────────────────────────────────────────────────────


# In the third and fifth batch that a rank reads, the loss, or only its gradient, is not finite.
BAD_LOSS = """
import torch
from transformers import GPT2LMHeadModel
forward, calls = GPT2LMHeadModel.forward, []
def bad(self, *arguments, **named):
    out = forward(self, *arguments, **named)
    if self.training:
        calls.append(1)
        if len(calls) in (3, 5):
            out.loss = out.loss * float("nan")
    return out
GPT2LMHeadModel.forward = bad
"""
BAD_GRADIENT = """
import torch
from transformers import GPT2LMHeadModel
forward, seen = GPT2LMHeadModel.forward, []
class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")
def bad(self, input_ids, labels):
    out = forward(self, input_ids=input_ids, labels=labels)
    if self.training:
        known = any(torch.equal(input_ids, other) for other in seen)
        seen.append(input_ids.clone())
        if len(seen) == 3 or known:
            out.loss = Bad.apply(out.loss)
    return out
GPT2LMHeadModel.forward = bad
"""


def train(ranks: ForkedRanks, folder: Path, name: str, world: int, inject: str, *more: str) -> tuple[list[int], str]:
    options = ["-e", name, "--output-dir", str(folder), "--preset", "smoke", "--max-steps", "6", "--device", "cpu"]
    options += ["--seq-length", "32", "--batch-size", "2", "--warmup-steps", "0", *more]
    log = folder / f"{name}.log"
    statuses = ranks.run(log, world, *options, inject={world - 1: inject} if inject else None)
    return statuses, log.read_text()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize(("fault", "what"), [(BAD_LOSS, "loss"), (BAD_GRADIENT, "gradient")], ids=["loss", "gradient"])
def test_the_rank_where_it_came_up_is_named_with_its_batch(ranks: ForkedRanks, output: Path, fault: str, what: str):
    statuses, printed = train(ranks, output, what, 2, fault)
    assert statuses == [1, 1]
    assert f"FloatingPointError: the {what} is not finite at step 3 on rank 1 (sequences " in printed
    assert f"PeerError: the {what} is not finite at step 3 on rank 1 (sequences " in printed
    assert [row["step"] for row in metrics_of(output / what)] == [1, 2]


def test_a_skipped_step_counts_and_leaves_the_weights_and_every_rank_goes_on(ranks: ForkedRanks, output: Path):
    statuses, printed = train(ranks, output, "skips", 2, BAD_LOSS, "--max-skipped-steps", "2")
    assert statuses == [0, 0], printed
    assert "warning: the loss is not finite at step 3 on rank 1 (sequences " in printed
    skipped = [row for row in metrics_of(output / "skips") if row.get("event") == "skipped"]
    assert [(row["step"], row["ranks"]) for row in skipped] == [(3, [1]), (5, [1])]
    assert len(skipped[0]["sequences"]["1"]) == 2
    losses = {row["step"]: row["loss"] for row in metrics_of(output / "skips") if "loss" in row}
    assert losses[3] is None
    assert None not in (losses[2], losses[4], losses[6])
    assert "complete: 6 steps" in printed


def test_more_skipped_steps_than_allowed_end_the_run_also_across_attempts(ranks: ForkedRanks, output: Path):
    statuses, printed = train(ranks, output, "enough", 2, BAD_LOSS, "--max-skipped-steps", "1", "--ckpt-freq", "1")
    assert statuses == [1, 1]
    assert "at step 5 on rank 1" in printed
    # The next attempt goes on from step 4, after the step that was skipped before; its third step is the sixth.
    more = ["--max-skipped-steps", "1", "--max-steps", "8"]
    statuses, printed = train(ranks, output, "enough", 2, BAD_LOSS, *more)
    assert statuses == [1, 1]
    assert "(skipped before: 1)" in printed
