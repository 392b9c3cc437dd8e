"""The training loss of a batch of packed sequences: what the loop differentiates and the evaluation averages."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


class TokenLoss(nn.Module):
    """A causal language model as a function from tokens to the mean loss of predicting each next one."""

    def __init__(self, model: Any, bfloat16: bool) -> None:
        """The forward and backward pass run in bfloat16 for what gains from it, over weights that stay float32:
        pure bfloat16 weights lose small updates."""
        super().__init__()
        self.model = model
        self._bfloat16 = bfloat16

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss of int64 tokens of shape [sequences, tokens], in nats per token: a float32 scalar."""
        with self._precision(tokens.device):
            return self.model(input_ids=tokens, labels=tokens).loss.float()

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if self._bfloat16 else nullcontext()
