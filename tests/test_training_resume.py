"""Going on after a stop computes what would have been computed without it, to the last bit."""

import hashlib
import json
from pathlib import Path

import pytest

from conftest import metrics_of
from forked_ranks import ForkedRanks
from training.demo import demo_architecture, demo_tokenizer

STEPS = 9


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all runs, with data of 16 sequences, so that a few steps are an epoch, and a model with
    dropout."""
    folder = tmp_path_factory.mktemp("outputs")
    texts = [" ".join(f"{number * 7919 % 97} and {number + place}" for place in range(12)) for number in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    drops = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    small = {"n_embd": 32, "n_layer": 2, "n_head": 2}
    demo_tokenizer().save_pretrained(folder / "model")
    (folder / "model/config.json").write_text(json.dumps(demo_architecture() | small | drops))
    return folder


def options(output: Path, name: str, *more: str) -> list[str]:
    given = ["-e", name, "--output-dir", str(output), "--preset", "smoke", "--device", "cpu"]
    given += ["--dataset-name", str(output / "data.jsonl"), "--model-name", str(output / "model")]
    given += ["--seq-length", "32", "--batch-size", "2", "--max-steps", str(STEPS), "--eval-freq", "4"]
    return [*given, *more]


def train(
    ranks: ForkedRanks, output: Path, name: str, world: int, *more: str, stop: tuple[int, int] | None = None
) -> str:
    """What was printed by a run that completed, or that was saved where it was to be stopped."""
    log = output / f"{name}.log"
    log.unlink(missing_ok=True)
    statuses = ranks.run(log, world, *options(output, name, *more), stop=stop)
    printed = log.read_text()
    assert set(statuses) == {75 if stop else 0}, printed
    return printed


def numbers(run: Path) -> list[tuple]:
    """Every number of a run that must be the same to the last bit, and the hash of its weights."""
    told = [
        tuple(row.get(name) for name in ("step", "loss", "lr", "grad_norm", "eval_loss"))
        for row in metrics_of(run)
        if "loss" in row or "eval_loss" in row
    ]
    weights = run / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors"
    return [*told, (hashlib.sha256(weights.read_bytes()).hexdigest(),)]


CONFIGURATIONS = {
    "1 rank": (1, []),
    "2 ranks, workers, accumulation": (2, ["--num-workers", "2", "--gradient-accumulation-steps", "2"]),
    "3 ranks": (3, []),
    "4 ranks, accumulation": (4, ["--gradient-accumulation-steps", "2"]),
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_stopped_run_goes_on_to_the_same_bits(ranks: ForkedRanks, output: Path, configuration: str):
    world, more = CONFIGURATIONS[configuration]
    train(ranks, output, f"whole-{world}", world, *more)
    # After the first step DDP sorts its buckets anew, at the fourth there is an evaluation, in the ninth an epoch ends.
    for step in (1, 2, 4, 8):
        cut = f"cut-{world}-{step}"
        assert f"saved step {step}/{STEPS} on SIGUSR1" in train(
            ranks, output, cut, world, *more, stop=(world - 1, step)
        )
        assert f"resumed at step {step}, bit-exact" in train(ranks, output, cut, world, *more)
        assert numbers(output / cut) == numbers(output / f"whole-{world}"), f"stopped at step {step}"
        summary = json.loads((output / cut / "summary.json").read_text())
        assert summary["bit_exact"] is True


# What is read ahead and not trained on does not count.
COUNT_SEQUENCES = """
import os
from training.token_loss import TokenLoss
from training.tokens import Blocks
take, forward, index_of = Blocks.take, TokenLoss.forward, {}
def remembered(self, indices, out=None):
    taken = take(self, indices, out)
    index_of.update(zip((row.astype("int64").tobytes() for row in taken), indices))
    return taken
def counted(self, tokens):
    if self.training:
        with open(os.environ["TRAINED_ON"], "a") as file:
            keys = [row.numpy().tobytes() for row in tokens]
            print(*(index_of[key] for key in keys if key in index_of), sep="\\n", file=file)
    return forward(self, tokens)
Blocks.take, TokenLoss.forward = remembered, counted
"""


def test_on_another_number_of_ranks_each_sequence_still_comes_once_an_epoch(ranks: ForkedRanks, output: Path):
    trained_on = output / "trained_on"
    counted = dict.fromkeys(range(3), COUNT_SEQUENCES)
    environ = {"TRAINED_ON": str(trained_on)}

    def part(world: int, status: int, stop: tuple[int, int] | None) -> str:
        argv = options(output, "regrouped", "--eval-freq", "0", "--max-steps", "4")
        log = output / "regrouped.log"
        assert set(ranks.run(log, world, *argv, stop=stop, environ=environ, inject=counted)) == {status}, (
            log.read_text()
        )
        return log.read_text()

    part(1, 75, (0, 1))
    part(3, 75, (2, 2))
    printed = part(2, 0, None)
    assert "resumed at step 1, not bit-exact: ranks 1 → 3" in printed
    assert "resumed at step 2, not bit-exact: ranks 3 → 2" in printed
    indices = [int(line) for line in trained_on.read_text().split()]
    # 1 × 2 in the first step, 3 × 2 in the second, 2 × 2 in each of two: all of the first epoch but the last sequences.
    assert len(indices) == len(set(indices)) == 2 + 6 + 2 * 4
    resumed = [
        (row["step"], row["bit_exact"]) for row in metrics_of(output / "regrouped") if row.get("event") == "resumed"
    ]
    assert resumed == [(1, False), (2, False)]
    assert json.loads((output / "regrouped" / "summary.json").read_text())["bit_exact"] is False
    assert "not bit-exact: some attempt went on under other conditions" in printed


def test_other_conditions_than_before_are_named(ranks: ForkedRanks, output: Path):
    train(ranks, output, "other", 1, stop=(0, 3))
    printed = train(ranks, output, "other", 1, "--dtype", "bfloat16", "--batch-size", "4")
    assert "resumed at step 3, not bit-exact: --batch-size 2 → 4, --dtype float32 → bfloat16" in printed


def test_a_stop_in_the_last_step_completes_the_run(ranks: ForkedRanks, output: Path):
    log = output / "last.log"
    assert set(ranks.run(log, 2, *options(output, "last"), stop=(1, STEPS))) == {0}, log.read_text()
    assert "complete: 9 steps" in log.read_text()
    assert any("eval_loss" in row and row["step"] == STEPS for row in metrics_of(output / "last"))


SIGNALLED_BEFORE_THE_GROUP = """
import os, signal
from training.joining import Joining
finish = Joining.finish
def signalled(joining):
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGUSR1)
    return finish(joining)
Joining.finish = signalled
"""
SIGNALLED_IN_SAVE = """
import os, signal
from training import random_state
state = random_state.capture
def signalled(*arguments):
    os.kill(os.getpid(), signal.SIGUSR1)
    return state(*arguments)
random_state.capture = signalled
"""
SIGNALLED_IN_EVALUATION = """
import os, signal
from training import evaluate
evaluate.BATCHES_BETWEEN_AGREEMENTS = 1
whole = evaluate.evaluate
def signalled(*arguments):
    os.kill(os.getpid(), signal.SIGUSR1)
    return whole(*arguments)
evaluate.evaluate = signalled
"""
OFTEN_AGREED = "from training import evaluate; evaluate.BATCHES_BETWEEN_AGREEMENTS = 1"


def test_a_stop_before_the_ranks_have_found_each_other_makes_no_step(ranks: ForkedRanks, output: Path):
    log = output / "early.log"
    inject = {1: SIGNALLED_BEFORE_THE_GROUP}
    assert set(ranks.run(log, 2, *options(output, "early"), inject=inject)) == {75}, log.read_text()
    assert "stopped at step 0/9 on SIGUSR1, before a new step" in log.read_text()
    assert metrics_of(output / "early") == []


def test_a_stop_during_a_save_is_taken_at_the_next_step(ranks: ForkedRanks, output: Path):
    log = output / "saving.log"
    inject = {1: SIGNALLED_IN_SAVE}
    argv = options(output, "saving", "--ckpt-freq", "4")
    assert set(ranks.run(log, 2, *argv, inject=inject)) == {75}, log.read_text()
    assert "saved step 5/9 on SIGUSR1" in log.read_text()


def test_a_stop_cuts_an_evaluation_short_and_the_next_attempt_makes_it_again(ranks: ForkedRanks, output: Path):
    small = ["--batch-size", "1", "--validation-split-percentage", "50"]
    log = output / "long.log"
    train(ranks, output, "long-whole", 2, *small)
    inject = {0: OFTEN_AGREED, 1: SIGNALLED_IN_EVALUATION}
    assert set(ranks.run(log, 2, *options(output, "long", *small), inject=inject)) == {75}, log.read_text()
    assert "saved step 4/9 on SIGUSR1" in log.read_text()
    assert "held-out loss" not in log.read_text()
    train(ranks, output, "long", 2, *small)
    assert numbers(output / "long") == numbers(output / "long-whole")
