"""Whether the fused step in bfloat16 learns as plain float32 does: both train on the same text, from the same weights.

    python -m training.prepare --dataset-name DATA --model-name MODEL --output-dir DIR
    python tests/benchmark_loss.py DIR/.cache/tokens-… [STEPS [SEEDS]]

On a GPU it is GPT-2 with 124M parameters and the fused kernels; on a CPU, where those do not run, a small one under
bfloat16 autocast. Without dropout, so that nothing but the arithmetic differs. Rounding alone sends two trainings
apart, so each seed (3, unless given) is another pair, with weights and an order of its own; their mean says whether one
way learns less.
"""

import sys
from pathlib import Path

import torch

from training.bench.options import SIZES
from training.evaluate import evaluate
from training.heartbeat import Heartbeat
from training.loader import Loader
from training.loop import LoopPlan, train_steps
from training.model import build_model
from training.optimizer import make_optimizer
from training.passes import make_passes
from training.sampler import RankBatches, SampleOrder
from training.stop import StopRequest
from training.token_loss import TokenLoss, token_loss
from training.tokens import open_blocks

LENGTH, BATCH, LAST = 256, 8, 100
PEAK_LR, WARMUP_SHARE = 6e-4, 0.05
GOAL = 0.01


def final_losses(folder: Path, steps: int, seed: int, fused: bool, device: torch.device) -> tuple[float, float]:
    """The mean training loss of the last steps, and the held-out loss after them, in nats per token."""
    torch.manual_seed(seed)
    size = SIZES["gpt2" if device.type == "cuda" else "small"]
    architecture = size.architecture(dropout=0.0) | {"vocab_size": SIZES["gpt2"].vocabulary}
    model = build_model(architecture, None).to(device)
    loss_of = token_loss(model, "auto", True, False, False, device) if fused else TokenLoss(model, bfloat16=False)
    blocks, held_out = (open_blocks(folder, part, LENGTH) for part in ("train", "held_out"))
    batches = RankBatches(SampleOrder(len(blocks), seed), 0, 1, BATCH, 1, 0, steps)
    plan = LoopPlan(0, steps, 1, PEAK_LR, "cosine", round(WARMUP_SHARE * steps), 1.0)
    optimizer = make_optimizer(model, 0.1)
    passes = make_passes("auto", loss_of, optimizer, 1, (BATCH, LENGTH), device)
    made = train_steps(
        loss_of, optimizer, Loader(blocks, batches, 0, device), plan, StopRequest(), device, Heartbeat(None),
        passes=passes,
    )  # fmt: skip
    losses = []
    for result in made:
        losses.append(result.loss)
        if result.step % max(1, steps // 10) == 0:
            print(f"  {'fused' if fused else 'float32'} step {result.step}: loss {result.loss:.4f}", flush=True)
    last = losses[-LAST:]
    after = evaluate(loss_of, held_out, [range(i, i + 1) for i in range(min(128, len(held_out)))], device)
    assert after is not None
    return sum(last) / len(last), after


def main(folder: Path, steps: int, seeds: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert not torch.backends.cuda.matmul.allow_tf32, "float32 is to be float32"
    differences: dict[str, list[float]] = {"last steps": [], "held out": []}
    for seed in range(seeds):
        fused, plain = (final_losses(folder, steps, seed, choice, device) for choice in (True, False))
        for what, one, other in zip(differences, fused, plain, strict=True):
            differences[what].append(one - other)
            print(f"seed {seed}  {what:<10}  bfloat16 {one:.4f}   float32 {other:.4f}   difference {one - other:+.4f}")
    for what, of in differences.items():
        print(f"{what:<10}  mean difference {sum(of) / len(of):+.4f} (goal: {GOAL})")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[2:]]
    main(Path(sys.argv[1]), *(numbers + [2000, 3][len(numbers) :]))
