"""nanoGPT's training step, written anew from what it publishes (https://github.com/karpathy/nanoGPT, MIT licence).

Its model: pre-norm blocks, fused query-key-value projection, `scaled_dot_product_attention(is_causal=True)`, the exact
GELU, output weights tied to the embedding, a vocabulary that is filled up to a multiple of 64. Its settings: float32
weights under bfloat16 autocast, fused AdamW with betas 0.9 and 0.95, weight decay on matrices, gradients clipped to 1,
a gradient scaler that is switched off, the whole model compiled. Its order of a step: the next batch is fetched between
forward and backward pass.
"""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from training.bench.options import ModelSize
from training.bench.setting import MAX_GRAD_NORM, PEAK_LR, WARMUP_STEPS, WEIGHT_DECAY, Setting, over_ranks

BETAS = (0.9, 0.95)
DECAY_STEPS = 600_000
LOWEST_LR = PEAK_LR / 10
VOCABULARY_MULTIPLE = 64


class Norm(nn.Module):
    """Layer norm whose bias can be left out."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, size: ModelSize, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = size.heads, dropout
        self.query_key_value = nn.Linear(size.width, 3 * size.width, bias=bias)
        self.out = nn.Linear(size.width, size.width, bias=bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of x, shape [sequences, tokens, width], and of that shape."""
        batch, length, width = x.shape
        parts = self.query_key_value(x).split(width, dim=2)
        query, key, value = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in parts
        )
        attended = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        return self.drop(self.out(attended.transpose(1, 2).contiguous().view(batch, length, width)))


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, size: ModelSize, bias: bool, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(size.width, 4 * size.width, bias=bias)
        self.gelu = nn.GELU()
        self.out = nn.Linear(4 * size.width, size.width, bias=bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of x, shape [sequences, tokens, width], and of that shape."""
        return self.drop(self.out(self.gelu(self.up(x))))


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and beside the stream of residuals."""

    def __init__(self, size: ModelSize, bias: bool, dropout: float) -> None:
        super().__init__()
        self.norm_1 = Norm(size.width, bias)
        self.attention = Attention(size, bias, dropout)
        self.norm_2 = Norm(size.width, bias)
        self.feed_forward = FeedForward(size, bias, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of x, shape [sequences, tokens, width], and of that shape."""
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class NanoGPT(nn.Module):
    """The model."""

    def __init__(self, size: ModelSize, vocabulary: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, size.width)
        self.positions = nn.Embedding(size.positions, size.width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(size, bias, dropout) for _ in range(size.layers))
        self.norm = Norm(size.width, bias)
        self.head = nn.Linear(size.width, vocabulary, bias=False)
        self.tokens.weight = self.head.weight
        self.apply(_initialise)
        # Each block adds to the stream of residuals twice.
        for name, parameter in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * size.layers))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of shape [sequences, tokens, vocabulary], and the mean loss, of int64 tokens and targets of shape
        [sequences, tokens]."""
        places = torch.arange(tokens.shape[1], dtype=torch.long, device=tokens.device)
        x = self.drop(self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        loss = functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)
        return logits, loss


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class NanoGPTStep:
    """The loop around it."""

    def __init__(self, setting: Setting, bias: bool) -> None:
        self._setting = setting
        device = setting.device
        torch.manual_seed(setting.seed)
        vocabulary = -(-setting.size.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        with device:
            self.model: Any = NanoGPT(setting.size, vocabulary, bias, setting.dropout)
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [one for one in parameters if one.dim() >= 2], "weight_decay": WEIGHT_DECAY},
                {"params": [one for one in parameters if one.dim() < 2], "weight_decay": 0.0},
            ],
            lr=PEAK_LR,
            betas=BETAS,
            fused=device.type == "cuda",
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=False)
        self._trained: Any = over_ranks(torch.compile(self.model) if setting.compiled else self.model, setting)
        self._chance = torch.Generator().manual_seed(setting.seed + setting.ranks.rank)
        self._step = 0
        self._batch = self._next_batch()

    def _next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequences that begin anywhere, and the same one token later; int64 of shape [sequences, tokens]."""
        data, length = self._setting.tokens, self._setting.length
        starts = torch.randint(len(data) - length, (self._setting.batch_size,), generator=self._chance)
        x = torch.stack([torch.from_numpy(data[i : i + length].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + length].astype(np.int64)) for i in starts])
        if self._setting.device.type == "cuda":
            device = self._setting.device
            x, y = x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
        return x, y

    def steps(self, count: int) -> Any:
        """See `Subject`."""
        autocast = torch.autocast("cuda", torch.bfloat16) if self._setting.bfloat16 else nullcontext()
        for _ in range(count):
            for group in self.optimizer.param_groups:
                group["lr"] = rate(self._step)
            with autocast:
                _, loss = self._trained(*self._batch)
            self._batch = self._next_batch()
            self._scaler.scale(loss).backward()
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._trained.parameters(), MAX_GRAD_NORM)
            self._scaler.step(self.optimizer)
            self._scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            self._step += 1
        return loss.detach()

    def close(self) -> None:
        """See `Subject`."""


def rate(step: int) -> float:
    """The learning rate of a step, counted from 0: up in a line, down by a cosine to a tenth."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / (WARMUP_STEPS + 1)
    share = min(1.0, (step - WARMUP_STEPS) / (DECAY_STEPS - WARMUP_STEPS))
    return LOWEST_LR + 0.5 * (1 + math.cos(math.pi * share)) * (PEAK_LR - LOWEST_LR)
