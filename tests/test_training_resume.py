"""Going on after a stop computes what would have been computed without it, to the last bit."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from forked_ranks import ForkedRanks
from training.demo import demo_architecture, demo_tokenizer

STEPS = 9


@pytest.fixture(scope="module")
def ranks() -> Iterator[ForkedRanks]:
    forked = ForkedRanks()
    yield forked
    forked.close()


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


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(run: Path) -> list[tuple]:
    """Every number of a run that must be the same to the last bit, and the hash of its weights."""
    told = [
        tuple(row.get(name) for name in ("step", "loss", "lr", "grad_norm", "eval_loss"))
        for row in rows(run)
        if "event" not in row
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
