"""Documents that share a sequence, kept apart: positions count from each one's start, and attention does not look back
beyond it (`--packing varlen`).

A document ends with its end-of-text token. What that token predicts, the beginning of the next document, counts in the
loss as it does without: so every sequence has the same number of predictions, and a mean over sequences is one over
tokens.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from training.errors import InputError


def document_starts(tokens: torch.Tensor, end_of_text: int) -> torch.Tensor:
    """Where the document of each token begins in its sequence: int64 as `tokens`, of shape [sequences, tokens].

    A sequence also begins one: its first document may have lost its beginning to the sequence before.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = torch.zeros_like(tokens, dtype=torch.bool)
    begins[:, 1:] = tokens[:, :-1] == end_of_text
    return torch.where(begins, places, 0).cummax(dim=1).values


def positions_from(starts: torch.Tensor) -> torch.Tensor:
    """The position of each token in its document, from 0; shapes as in `document_starts`."""
    return torch.arange(starts.shape[1], device=starts.device) - starts


def within_documents(tokens: torch.Tensor, end_of_text: int) -> dict[str, Any]:
    """What to call a model of transformers with, besides the tokens: it tells packed documents apart by positions that
    begin anew, but not where it also keeps a cache of keys."""
    return {"position_ids": positions_from(document_starts(tokens, end_of_text)), "use_cache": False}


def causal_mask_within(starts: torch.Tensor) -> torch.Tensor:
    """Whether a token (first index) sees another (second): one of the same document, not after it.

    Boolean, of shape [sequences, 1, tokens, tokens].
    """
    same = starts[:, :, None] == starts[:, None, :]
    return same.tril_()[:, None]


Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""From queries, keys and values of shape [sequences, heads, tokens, head size] and a probability of dropout."""


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> torch.Tensor:
    """Over all that stands before a token in its sequence."""
    return functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)


def attention_within(starts: torch.Tensor, head_size: int) -> Attention:
    """Over what stands before a token in its own document.

    On a GPU by flash attention, which takes documents one by one and never makes what a mask would forbid. (PyTorch's
    `varlen_attn` calls the same operation, without dropout.)
    """
    # What FlashAttention-2 takes, https://github.com/Dao-AILab/flash-attention: GPUs from Ampere on, these head sizes.
    by_flash = starts.is_cuda and torch.cuda.get_device_capability(starts.device) >= (8, 0)
    if not by_flash or head_size % 8 or head_size > 256:
        mask = causal_mask_within(starts)
        return lambda query, key, value, dropout: functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout
        )
    bounds, flash = document_bounds(starts), torch.ops.aten._flash_attention_forward

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> torch.Tensor:
        sequences, _, length, _ = query.shape
        rows = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
        attended, *_ = flash(*rows, bounds, bounds, length, length, dropout, True, False)
        return attended.unflatten(0, (sequences, length)).transpose(1, 2)

    return attend


def document_bounds(starts: torch.Tensor) -> torch.Tensor:
    """Where each document begins, all sequences put one behind the other, and at last their end: int32 of shape
    [documents + 1]."""
    begins = (positions_from(starts) == 0).flatten().nonzero().flatten()
    return functional.pad(begins, (0, 1), value=starts.numel()).int()


@torch.no_grad()
def check_keeps_apart(model: Any) -> None:
    """Refuse a model of transformers whose attention goes across documents whatever it is called with.

    Raises:
        InputError: it takes no positions, or what it makes of a document still depends on the one before.
    """
    apart = "position_ids" in inspect.signature(model.forward).parameters
    if apart:
        training, _ = model.training, model.eval()
        tokens, end_of_text = torch.tensor([[1, 2, 0, 4, 5, 6], [2, 3, 0, 4, 5, 6]], device=model.device), 0
        first, second = model(input_ids=tokens, **within_documents(tokens, end_of_text)).logits[:, 3:]
        apart = torch.allclose(first, second, atol=1e-5)
        model.train(training)
    if not apart:
        raise InputError(
            f"--packing varlen: the attention of a {model.config.model_type} cannot be kept within documents; "
            f"leave the option out"
        )
