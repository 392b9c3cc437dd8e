"""The loop that a tutorial shows: a Hugging Face model, a DataLoader, AdamW, and nothing done about speed but
`torch.compile`.

As in the chapter on mpirun of the Distributed Training Guide (https://github.com/LambdaLabsML/distributed-training-guide):
weights, gradients and optimizer state in bfloat16 on GPUs, no clipping, no decay groups, labels sent beside the tokens,
the loss read at each step. Pure bfloat16 weights lose small updates: this is a measure of speed, not a way to train.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForCausalLM, GPT2Config

from training.bench.setting import PEAK_LR, Setting, over_ranks
from training.tokens import Blocks


class Sequences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sequences as Hugging Face's own scripts give them: `input_ids` and `labels`, each int64 of shape [tokens]."""

    def __init__(self, setting: Setting) -> None:
        self._blocks = Blocks(setting.tokens, setting.length)

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self._blocks[index])
        return {"input_ids": row, "labels": row.clone()}


def plain_model(setting: Setting) -> Any:
    """The Hugging Face model as `from_config` gives it, without what `build_model` mends."""
    with setting.device:
        return AutoModelForCausalLM.from_config(
            GPT2Config(**setting.size.architecture(setting.dropout), use_cache=False), dtype=torch.float32
        )


class Chapter:
    """The loop."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        torch.manual_seed(setting.seed)
        dtype = torch.bfloat16 if setting.bfloat16 else torch.float32
        self.model = plain_model(setting).to(dtype)
        self._trained: Any = over_ranks(torch.compile(self.model) if setting.compiled else self.model, setting)
        self._trained.train()
        self.optimizer = torch.optim.AdamW(self._trained.parameters(), lr=PEAK_LR)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=1000, eta_min=PEAK_LR / 100)
        self._batches = self._endless()

    def _endless(self) -> Iterator[dict[str, torch.Tensor]]:
        setting, data = self._setting, Sequences(self._setting)
        sampler: DistributedSampler[Any] = DistributedSampler(
            data, setting.ranks.world_size, setting.ranks.rank, shuffle=True, seed=setting.seed, drop_last=True
        )
        # One process reads ahead, where there is a GPU to be kept waiting otherwise.
        ahead: dict[str, Any] = {"num_workers": 1, "prefetch_factor": 2} if setting.device.type == "cuda" else {}
        loader = DataLoader(data, batch_size=setting.batch_size, sampler=sampler, drop_last=True, **ahead)
        epoch = 0
        while True:
            sampler.set_epoch(epoch)
            yield from loader
            epoch += 1

    def steps(self, count: int) -> Any:
        """See `Subject`."""
        for _ in range(count):
            batch = {name: value.to(self._setting.device) for name, value in next(self._batches).items()}
            outputs = self._trained(**batch)
            outputs.loss.backward()
            self.optimizer.step()
            self._schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss = outputs.loss.item()
        return loss

    def close(self) -> None:
        """See `Subject`."""
        self._batches.close()  # type: ignore[attr-defined]
