"""Causal attention that stays fused under torch.compile.

Under compile, transformers builds a dense mask for scaled dot product attention and passes
`is_causal=False`, which rules the fast kernels out (transformers issue 48925). Our sequences are packed and
unpadded, so causality is the whole mask and no mask is needed.
"""

from typing import Any

import torch
from torch.nn import functional

NAME = "packed_causal"


def use_packed_causal_attention(model: Any) -> None:
    """Switch a GPT-2 to this attention; models whose masks say more than causality are left alone."""
    if model.config.model_type != "gpt2":
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_causal_attention)
    model.set_attn_implementation(NAME)


def packed_causal_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over queries, keys and values of shape [batch, heads, tokens, head size].

    Returns:
        The attended values, shape [batch, tokens, heads, head size], and no attention weights.
    """
    # One new token against a cache of keys sees them all; in every other case the lengths are equal.
    whole = query.shape[2] == key.shape[2]
    attended = functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=whole, scale=scaling
    )
    return attended.transpose(1, 2).contiguous(), None
