"""A small GPT-2 for comparing gradients."""

from typing import Any

import torch

from training.model import build_model


def random_gpt2(architecture: dict[str, Any], dropout: float = 0.0) -> Any:
    """A model whose weights are all random, so that no gradient is zero by chance."""
    torch.manual_seed(0)
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    model = build_model(architecture | drops, None)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith(("1.weight", "2.weight", "f.weight"))), std=0.15)
    return model.train()


def worst_difference(model: Any, reference: Any) -> float:
    """Of the gradients, each relative to its own size."""
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    return max(float((one.grad - other.grad).norm() / other.grad.norm()) for one, other in pairs)
