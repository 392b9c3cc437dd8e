"""What the exchange of gradients costs a step, by strategy and setting.

    python -m cluster.launch --ranks-per-node 2 -- python tests/benchmark_strategy.py [ROUNDS [SEQUENCES [NAME …]]]

On GPUs GPT-2 of 124 million parameters in bfloat16 with 16 sequences of 1024 tokens on each rank; on CPUs a small one,
to see that all of it runs. A step is forward and backward pass, clipping and AdamW. Each variant has a model of its
own, and all are measured in one process in turns, so that they share the same clocks and neighbours, after a round that
only warms up; with NAMEs only those that have one of them in theirs. The first variant exchanges nothing: the others
are compared with it, round by round. A variant's time in a round is that of the slowest rank. Printed are the median
with the smallest and largest of the rounds.
"""

import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from benchmark_checkpoint import spread
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, GPT2LMHeadModel

from training import process_group, strategy
from training.bench.rounds import rotated
from training.config import TrainConfig
from training.device import device_name, own_device, share_cpus
from training.joining import Joining
from training.optimizer import make_optimizer
from training.ranks import RankInfo
from training.token_loss import TokenLoss, token_loss

STEPS = 4
NO_DROPOUT: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SMALL: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 512, "n_positions": 64}
# From 98.5 % of one GPU's speed on.
GOAL = 0.985


@dataclass
class Variant:
    """One way to train, with a model of its own."""

    name: str
    wrap: Callable[[nn.Module], nn.Module]
    trained: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    seconds: list[float] = field(default_factory=list)

    def build(self, configuration: GPT2Config, device: torch.device) -> None:
        """Its model and its optimizer."""
        torch.manual_seed(0)
        model: Any = GPT2LMHeadModel(configuration)
        model.loss_type = "ForCausalLM"
        loss_of = token_loss(model.to(device), "auto", device.type == "cuda", False, False, device)
        self.trained = self.wrap(loss_of)
        self.optimizer = make_optimizer(self.trained, 0.1)

    def step(self, tokens: torch.Tensor) -> None:
        """One optimizer step on these tokens."""
        with strategy.without_reduction(self.trained) if self.name == ALONE else nullcontext():
            self.trained(tokens).backward()
        strategy.exchange_gradients(self.trained)
        strategy.clip_gradients(self.trained.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


ALONE, OURS = "no exchange", f"ddp, {TrainConfig.ddp_bucket_cap_mb} MiB"


def variants(device: torch.device) -> list[Variant]:
    """All that are compared."""
    devices = [device] if device.type == "cuda" else None

    def ours(megabytes: int, short: bool = False, overlap: bool = True) -> Callable[[nn.Module], nn.Module]:
        return lambda loss_of: strategy.replicate(loss_of, device, megabytes, short, overlap)

    def plain(**options: Any) -> Callable[[nn.Module], nn.Module]:
        return lambda loss_of: DistributedDataParallel(loss_of, device_ids=devices, **options)

    def fsdp(short: bool) -> Callable[[nn.Module], nn.Module]:
        def wrap(loss_of: Any) -> nn.Module:
            source = loss_of.model if dist.get_rank() == 0 else None
            bfloat16 = device.type == "cuda"
            model = strategy.shard(
                source, loss_of.model.config.to_dict(), device, bfloat16=bfloat16, reduce_bfloat16=short, compiled=False
            )
            return TokenLoss(model, bfloat16=False)

        return wrap

    return [
        Variant(ALONE, ours(25)),
        *(Variant(f"ddp, {megabytes} MiB", ours(megabytes)) for megabytes in (10, 25, 50, 100, 200)),
        Variant("ddp, 25 MiB, static graph", plain(gradient_as_bucket_view=True, static_graph=True)),
        Variant("ddp, 25 MiB, no bucket view", plain()),
        *(Variant(f"ddp, {megabytes} MiB, bfloat16", ours(megabytes, True)) for megabytes in (25, 100)),
        Variant("ddp, at the end", ours(25, overlap=False)),
        Variant("ddp, at the end, bfloat16", ours(25, True, overlap=False)),
        Variant("fsdp", fsdp(False)),
        Variant("fsdp, bfloat16", fsdp(True)),
    ]


def slowest_seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long the slowest rank took, from a common start."""
    dist.barrier()
    synchronise(device)
    begun = time.perf_counter()
    run()
    synchronise(device)
    taken = torch.tensor(time.perf_counter() - begun, device=device)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return float(taken)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def exchange_seconds(size: int, device: torch.device, rounds: int) -> list[float]:
    """Of an all-reduce of so many float32 numbers, with nothing beside it."""
    numbers = torch.zeros(size, device=device)
    return [slowest_seconds(lambda: dist.all_reduce(numbers), device) for _ in range(rounds + 1)][1:]


def measure(ranks: RankInfo, device: torch.device, rounds: int, sequences: int, names: Sequence[str]) -> None:
    gpu = device.type == "cuda"
    configuration = GPT2Config(**NO_DROPOUT, **({} if gpu else SMALL))
    length = configuration.n_positions
    torch.manual_seed(1 + ranks.rank)
    tokens = torch.randint(configuration.vocab_size, (sequences, length), device=device)
    first, *others = variants(device)
    compared = [first, *(one for one in others if not names or any(name in one.name for name in names))]
    for variant in compared:
        variant.build(configuration, device)
    for number in range(rounds + 1):
        for variant in rotated(compared, number):

            def steps(variant: Variant = variant) -> None:
                for _ in range(STEPS):
                    variant.step(tokens)

            seconds = slowest_seconds(steps, device) / STEPS
            if number:
                variant.seconds.append(seconds)
    parameters = sum(parameter.numel() for parameter in compared[0].trained.parameters())
    embedding = configuration.vocab_size * configuration.n_embd
    exchanges = {"all gradients": parameters, "the tied embedding's, which come last": embedding}
    taken = {name: exchange_seconds(size, device, rounds) for name, size in exchanges.items()}
    if ranks.rank > 0:
        return
    name = device_name(device)
    shape = f"{sequences} × {length} tokens a rank"
    print(f"GPT-2 {parameters / 1e6:.1f}M, {shape}, {ranks.world_size} × {name}, {rounds} rounds")
    for what, times in taken.items():
        print(f"all-reduce of {what}: {exchanges[what] * 4 / 1e6:.0f} MB, {spread([1e3 * one for one in times])} ms")
    for variant in compared:
        ratios = [alone / own for alone, own in zip(compared[0].seconds, variant.seconds, strict=True)]
        speed = sequences * length / statistics.median(variant.seconds)
        print(
            f"{variant.name:<28} {spread([1e3 * one for one in variant.seconds])} ms   {speed:,.0f} tokens/s a rank   "
            f"{spread(ratios)} of the speed without exchange{f' (goal: {GOAL})' if variant.name == OURS else ''}"
        )


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    place = RankInfo.from_env(os.environ)
    share_cpus(place)
    joining = Joining(place, lambda: own_device("auto", place))
    chosen, _ = joining.finish()
    measure(place, chosen, count, int(sys.argv[2]) if len(sys.argv) > 2 else 16, sys.argv[3:])
    process_group.leave()
