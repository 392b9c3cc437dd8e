"""The loss on held-out documents, over all ranks."""

import math

import torch
from torch import nn

from training.process_group import any_rank, sum_over_ranks
from training.stop import StopRequest
from training.tokens import Blocks

# The ranks agree on a stop after so many batches of an evaluation: seldom enough to cost nothing.
BATCHES_BETWEEN_AGREEMENTS = 16


class CutShort(Exception):
    """An evaluation was not finished because some rank was asked to stop; raised on all ranks."""


def evaluation_batches(blocks: int, batch_size: int, rank: int, world_size: int, most: int) -> list[range]:
    """The held-out blocks this rank reads, in batches of which the last may be short.

    All ranks together read the first `most` blocks, or all where there are fewer, each once: which ones does
    not depend on batch size or world size, so that the losses of different runs can be compared. Every rank has
    the same number of batches, of which the last may be empty.
    """
    mine = range(min(blocks, most))[rank::world_size]
    longest = len(range(min(blocks, most))[::world_size])
    return [mine[start : start + batch_size] for start in range(0, longest, batch_size)]


@torch.no_grad()
def evaluate(
    loss_of: nn.Module,
    blocks: Blocks,
    batches: list[range],
    device: torch.device,
    stop: StopRequest | None = None,
) -> float | None:
    """Mean loss over all tokens of the held-out blocks that the ranks read together, in nats per token; None
    where there are none. The model is left in the mode in which it was found.

    Args:
        loss_of: a batch's loss, without DDP.
        blocks: held-out tokens.
        batches: what this rank reads of them.
        device: where batches go.
        stop: ends the evaluation early, on all ranks together; None is never asked.

    Raises:
        CutShort: some rank was asked to stop.
    """
    training, _ = loss_of.training, loss_of.eval()
    total = torch.zeros(2, dtype=torch.float64)
    try:
        for number, batch in enumerate(batches):
            agree = stop is not None and number > 0 and number % BATCHES_BETWEEN_AGREEMENTS == 0
            if stop is not None and agree and any_rank(stop.requested, device):
                raise CutShort
            # Every rank makes every pass, with whatever tokens: where FSDP has sharded the model, each needs all.
            tokens = torch.stack([torch.from_numpy(blocks[i]) for i in batch or batches[0] or [0]]).to(device)
            loss = loss_of(tokens)
            # Blocks have equal lengths: a mean over them, weighted by their number, is the mean over all tokens.
            if batch:
                total += torch.tensor([float(loss) * len(batch), len(batch)], dtype=torch.float64)
    finally:
        loss_of.train(training)
    loss_sum, count = sum_over_ranks(total.to(device)).tolist()
    return loss_sum / count if count else None


def perplexity(loss: float) -> float:
    """e to the loss, in tokens; infinite where that is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
