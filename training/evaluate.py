"""The loss on held-out documents, over all ranks."""

import math
from typing import Any

import torch

from training.loop import autocast
from training.process_group import sum_over_ranks
from training.tokens import Blocks


def evaluation_batches(blocks: int, batch_size: int, rank: int, world_size: int, most: int) -> list[range]:
    """The held-out blocks this rank reads, in batches of which the last may be short.

    All ranks together read the first `most` blocks, or all where there are fewer, each once: which ones does
    not depend on batch size or world size, so that the losses of different runs can be compared.
    """
    mine = range(min(blocks, most))[rank::world_size]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


@torch.no_grad()
def evaluate(model: Any, blocks: Blocks, batches: list[range], bfloat16: bool, device: torch.device) -> float | None:
    """Mean loss over all tokens of the held-out blocks that the ranks read together, in nats per token; None
    where there are none.

    Args:
        model: the model itself, without DDP: ranks may have different numbers of batches.
        blocks: held-out tokens.
        batches: what this rank reads of them.
        bfloat16: as in training.
        device: where batches go.
    """
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        tokens = torch.stack([torch.from_numpy(blocks[i]) for i in batch]).to(device)
        with autocast(device, bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        # Blocks have equal lengths: a mean over them, weighted by their number, is the mean over all tokens.
        total += torch.tensor([float(loss) * len(batch), len(batch)], dtype=torch.float64)
    loss_sum, count = sum_over_ranks(total.to(device)).tolist()
    return loss_sum / count if count else None


def perplexity(loss: float) -> float:
    """e to the loss, in tokens; infinite where that is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
