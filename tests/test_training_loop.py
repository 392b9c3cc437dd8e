"""The loop by itself, on a tiny model in this process."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training import loop
from training.evaluate import evaluate, evaluation_batches, perplexity
from training.heartbeat import Heartbeat
from training.loader import Loader
from training.loop import LoopPlan, dropout_seed, settle_buckets, train_steps
from training.optimizer import make_optimizer
from training.sampler import RankBatches, SampleOrder
from training.stop import StopRequest
from training.tokens import Blocks

CPU = torch.device("cpu")
BLOCKS = Blocks((np.arange(400) * 7 % 11).astype(np.uint16), 10)
PLAN = LoopPlan(0, 6, 1, 1e-2, "constant", 0, 1.0)


class Bigram(torch.nn.Module):
    """Predicts the next token from the last one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(11, 11)

    def forward(self, tokens):
        logits = self.table(tokens[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def run(plan=PLAN, batch=4, workers=0, model=None, stop=False):
    model = model or Bigram()
    batches = RankBatches(SampleOrder(len(BLOCKS), 0), 0, 1, batch, plan.accumulation, 0, plan.total)
    steps = train_steps(
        model,
        make_optimizer(model, 0.0),
        Loader(BLOCKS, batches, workers, CPU),
        plan,
        SimpleNamespace(requested=stop),
        CPU,
        Heartbeat(None),
    )
    return list(steps), model


def test_the_loss_falls():
    results, _ = run(replace(PLAN, total=40))
    assert results[-1].loss < results[0].loss - 0.2
    assert [result.step for result in results] == list(range(1, 41))


def test_accumulated_batches_give_the_step_of_one_large_batch():
    large, one = run(batch=8)
    small, two = run(replace(PLAN, accumulation=2), batch=4)
    assert [r.loss for r in small] == pytest.approx([r.loss for r in large], rel=1e-5)
    assert torch.allclose(one.table.weight, two.table.weight, atol=1e-6)


def test_threads_that_read_ahead_change_nothing():
    assert [r.loss for r in run(workers=1)[0]] == [r.loss for r in run()[0]]


def test_every_phase_has_its_seconds_and_they_fit_into_the_step():
    for result in run()[0]:
        assert set(result.phases) == {"data", "forward", "backward", "agree", "update"}
        assert all(seconds > 0 for seconds in result.phases.values())
        assert sum(result.phases.values()) <= result.seconds


def test_gradients_are_clipped_to_the_norm_and_reported_before_it():
    results, clipped = run(replace(PLAN, total=1, max_grad_norm=1e-4))
    assert results[0].grad_norm > 1e-4
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in clipped.parameters()]))
    assert float(norm) == pytest.approx(1e-4, rel=1e-2)
    _, whole = run(replace(PLAN, total=1, max_grad_norm=0.0))
    assert float(whole.table.weight.grad.norm()) == pytest.approx(results[0].grad_norm, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_update():
    model = Bigram()
    with torch.no_grad():
        model.table.weight[3, 3] = float("nan")
    before = model.table.weight.clone()
    with pytest.raises(
        FloatingPointError, match=r"the loss is not finite at step 1 on rank 0 \(sequences 1?.*\); the weights were not"
    ):
        run(model=model)
    assert torch.equal(model.table.weight.nan_to_num(9), before.nan_to_num(9))


def test_a_request_to_stop_shows_in_the_step_it_came_in():
    assert all(result.stop for result in run(stop=True)[0])
    assert not any(result.stop for result in run()[0])


def test_ranks_and_resumed_steps_drop_out_differently():
    seeds = {dropout_seed(seed, rank, step) for seed in (0, 1) for rank in (0, 1) for step in (0, 5)}
    assert len(seeds) == 8


def test_the_pass_before_a_resumed_run_is_that_of_a_training_step(monkeypatch):
    seen = []

    class Wrapped(Bigram):
        def forward(self, tokens):
            seen.append(self.training)
            return super().forward(tokens)

    monkeypatch.setattr(loop, "DistributedDataParallel", Wrapped)
    settle_buckets(Wrapped().eval(), 2, 10, CPU)
    assert seen == [True]


def test_a_model_that_drops_out_does_so_again_after_an_evaluation():
    def losses(evaluated):
        inner = Bigram()
        inner.table = torch.nn.Sequential(inner.table, torch.nn.Dropout(0.5))
        model = torch.nn.Sequential(inner)
        batches = RankBatches(SampleOrder(len(BLOCKS), 0), 0, 1, 4, 1, 0, PLAN.total)
        steps = train_steps(
            model, make_optimizer(model, 0.0), Loader(BLOCKS, batches, 0, CPU), PLAN,
            StopRequest(), CPU, Heartbeat(None),
        )  # fmt: skip
        made = []
        for result in steps:
            made.append(result.loss)
            if evaluated:
                evaluate(inner, BLOCKS, [range(4)], CPU)
        return made

    torch.manual_seed(1)
    alone = losses(evaluated=False)
    torch.manual_seed(1)
    assert losses(evaluated=True) == alone


def test_held_out_blocks_are_shared_out_once_each_up_to_the_limit():
    for batch_size, ranks in ((1, 1), (2, 3), (8, 2), (64, 16)):
        for blocks, read in ((5, 5), (7, 7), (100, 7)):
            shares = [evaluation_batches(blocks, batch_size, rank, ranks, most=7) for rank in range(ranks)]
            assert sorted(i for share in shares for batch in share for i in batch) == list(range(read))
            assert max(len(batch) for share in shares for batch in share) <= batch_size


def test_the_held_out_loss_weighs_every_sequence_the_same():
    model = Bigram()
    whole = evaluate(model, BLOCKS, [range(40)], CPU)
    uneven = evaluate(model, BLOCKS, [range(39), range(39, 40)], CPU)
    assert uneven == pytest.approx(whole, rel=1e-6)
    assert evaluate(model, BLOCKS, [], CPU) is None


@pytest.mark.parametrize(("batch_size", "ranks"), [(1, 1), (3, 2), (7, 4), (64, 3)])
def test_the_held_out_loss_depends_on_neither_batch_size_nor_number_of_ranks(monkeypatch, batch_size: int, ranks: int):
    model = Bigram()
    whole = evaluate(model, BLOCKS, [range(30)], CPU)
    totals = torch.zeros(2, dtype=torch.float64)
    monkeypatch.setattr("training.evaluate.sum_over_ranks", totals.add_)
    losses = [
        evaluate(model, BLOCKS, evaluation_batches(len(BLOCKS), batch_size, rank, ranks, most=30), CPU)
        for rank in range(ranks)
    ]
    assert losses[-1] == pytest.approx(whole, rel=1e-6)


def test_perplexity_is_e_to_the_loss_and_never_an_error():
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == float("inf")


def test_a_step_tells_how_long_the_ranks_were_busy_with_the_step_before():
    results, _ = run()
    assert results[0].rank_times is None
    for before, result in pairwise(results):
        assert result.rank_times.step == before.step
        assert result.rank_times.busy_seconds == pytest.approx([before.phases["data"] + before.phases["forward"]])
