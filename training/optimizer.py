"""The optimizer: AdamW over float32 weights."""

import torch
from torch import nn

BETAS = (0.9, 0.95)  # GPT-3's; a second moment that forgets faster recovers sooner from a bad batch.


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and embeddings but no biases and norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=BETAS, fused=True)


def step_if(wanted: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's step where `wanted`, a bool on its device, is true; the host need not know.

    A fused optimizer asks a tensor `found_inf` itself: so torch's GradScaler leaves steps out.
    """
    optimizer.found_inf = (~wanted).float()  # type: ignore[attr-defined]
    optimizer.step()
