"""Our own step: the loop, loss, optimizer and loader of `training.train_llm`, on tokens in memory."""

import tempfile
from typing import Any

import torch

from training.attention import use_packed_causal_attention
from training.bench.setting import ENDLESS, MAX_GRAD_NORM, PEAK_LR, WARMUP_STEPS, WEIGHT_DECAY, Setting, over_ranks
from training.heartbeat import Heartbeat
from training.loop import LoopPlan, dropout_seed, make_loader, train_steps
from training.model import build_model
from training.optimizer import make_optimizer
from training.random_state import seed_all
from training.sampler import RankBatches, SampleOrder
from training.stop import StopRequest
from training.token_loss import TokenLoss
from training.tokens import Blocks


class Ours:
    """`train_steps` as the trainer calls it, its heartbeat written to a file as under the launcher."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(setting.seed)
        model = build_model(setting.size.architecture(setting.dropout), None).to(setting.device)
        if setting.compiled:
            use_packed_causal_attention(model)
            model.compile()
        self.model = model
        loss_of = over_ranks(TokenLoss(model, setting.bfloat16), setting, gradient_as_bucket_view=True)
        self.optimizer = make_optimizer(model, WEIGHT_DECAY, setting.device)
        seed_all(dropout_seed(setting.seed, setting.ranks.rank, 0))
        blocks = Blocks(setting.tokens, setting.length)
        batches = RankBatches(
            order=SampleOrder(len(blocks), setting.seed),
            rank=setting.ranks.rank,
            world_size=setting.ranks.world_size,
            batch_size=setting.batch_size,
            accumulation=1,
            first_sample=0,
            steps=ENDLESS,
        )
        plan = LoopPlan(
            done=0,
            total=ENDLESS,
            accumulation=1,
            peak_lr=PEAK_LR,
            lr_scheduler="constant",
            warmup=WARMUP_STEPS,
            max_grad_norm=MAX_GRAD_NORM,
        )
        self._beats = tempfile.NamedTemporaryFile()  # noqa: SIM115
        heartbeat = Heartbeat(self._beats.name)
        heartbeat.enter("train")
        loader = make_loader(blocks, batches, 0, setting.device)
        self._results = train_steps(loss_of, self.optimizer, loader, plan, StopRequest(), setting.device, heartbeat)

    def steps(self, count: int) -> Any:
        """See `Subject`."""
        return [next(self._results).loss for _ in range(count)][-1]

    def close(self) -> None:
        """See `Subject`."""
        self._results.close()  # type: ignore[attr-defined]
        self._beats.close()
