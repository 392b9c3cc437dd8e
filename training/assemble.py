"""What this rank trains: the model or its slices of it, the loss, the optimizer, and how a step's passes are made."""

import socket
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.config import TrainConfig
from training.errors import NodeError
from training.model import build_model, check_predicts_next
from training.optimizer import make_optimizer
from training.packing import check_keeps_apart
from training.passes import Passes, make_passes
from training.process_group import gather, on_every_rank
from training.ranks import RankInfo
from training.start import Start
from training.strategy import overlap_pays, replicate, shard
from training.teardown import keep_until_the_end
from training.token_loss import TokenLoss, token_loss


@dataclass(frozen=True)
class Assembled:
    """All of it, on this rank's device."""

    model: Any
    """Of transformers, without DDP; where `sharded` FSDP has shared its tensors out."""
    loss_of: nn.Module
    """A batch's loss by the model, without DDP."""
    trained: nn.Module
    """The same as the loop takes it: several ranks add up their gradients."""
    optimizer: torch.optim.Optimizer
    passes: Passes
    sharded: bool
    overlap: bool | None
    """With DDP: whether the ranks exchange gradients while the backward pass still runs."""
    kernels: str
    """`fused` or `torch`; all ranks have the same."""


def assemble(config: TrainConfig, found: Start, ranks: RankInfo, device: torch.device, bfloat16: bool) -> Assembled:
    """Build it, called by all ranks: every rank gets the weights of rank 0, or its slices of them.

    Args:
        config: the options.
        found: the model, its weights and the batch size.
        ranks: this process's place.
        device: this rank's.
        bfloat16: whether the passes are.

    Raises:
        InputError: the model cannot be trained, or not as the options say.
        NodeError: the fused kernels work on some hosts alone.
    """
    torch.manual_seed(config.seed)
    architecture = found.source.architecture
    sharded = config.strategy == "fsdp" and ranks.world_size > 1
    reduce_bfloat16 = config.reduce_dtype == "bfloat16"
    end_of_text = found.end_of_text if config.packing == "varlen" else None

    def build() -> Any:
        if sharded and ranks.rank > 0:
            return None
        built = build_model(architecture, found.weights if ranks.rank == 0 else None)
        if ranks.rank == 0:
            check_predicts_next(built)
            if end_of_text is not None:
                check_keeps_apart(built)
        return built

    model: Any = on_every_rank(build)
    if sharded:
        model = shard(
            model, architecture, device, bfloat16=bfloat16, reduce_bfloat16=reduce_bfloat16, compiled=config.compile
        )
    else:
        model = model.to(device)
    # Each rank chooses by its own host, so one alone may refuse.
    loss_of = on_every_rank(
        lambda: token_loss(model, config.kernels, bfloat16, config.compile, sharded, device, end_of_text)
    )
    kernels = "torch" if isinstance(loss_of, TokenLoss) else "fused"
    check_same_kernels(gather((socket.gethostname(), kernels)))
    trained, overlap = loss_of, None
    if ranks.world_size > 1 and not sharded:
        overlap = overlap_pays(config.ddp_overlap, device)
        trained = replicate(loss_of, device, config.ddp_bucket_cap_mb, reduce_bfloat16, overlap)
    keep_until_the_end(trained)
    optimizer = make_optimizer(model, config.weight_decay)
    shape = (found.batch_size, config.seq_length)
    passes = make_passes(config.cuda_graphs, trained, optimizer, config.gradient_accumulation_steps, shape, device)
    return Assembled(model, loss_of, trained, optimizer, passes, sharded, overlap, kernels)


def check_same_kernels(hosts: list[tuple[str, str]]) -> None:
    """Refuse ranks of which some compute by other kernels: each chooses by its own host.

    Args:
        hosts: by rank, each with the kernels there.

    Raises:
        NodeError: names a host without the fused ones.
    """
    kernels = [kernels for _, kernels in hosts]
    if "fused" in kernels and "torch" in kernels:
        without = kernels.index("torch")
        raise NodeError(
            f"triton does not work on {hosts[without][0]} (its warning says why), but on other hosts: mend it there, "
            f"or give --kernels torch",
            speaker=without,
        )
