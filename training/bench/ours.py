"""Our own step: the loop, loss, optimizer and loader of `training.train_llm`, on tokens in memory."""

import tempfile
from typing import Any, Literal

import torch

from training.bench.setting import ENDLESS, MAX_GRAD_NORM, PEAK_LR, WARMUP_STEPS, WEIGHT_DECAY, Setting, keep_with_gloo
from training.config import TrainConfig
from training.heartbeat import Heartbeat
from training.loader import Loader
from training.loop import LoopPlan, dropout_seed, train_steps
from training.model import build_model
from training.optimizer import make_optimizer
from training.passes import make_passes
from training.random_state import seed_all
from training.sampler import RankBatches, SampleOrder
from training.stop import StopRequest
from training.strategy import overlap_pays, replicate
from training.token_loss import token_loss
from training.tokens import Blocks


class Ours:
    """`train_steps` as the trainer calls it, its heartbeat written to a file as under the launcher."""

    def __init__(
        self,
        setting: Setting,
        kernels: Literal["auto", "torch"],
        compiled: bool,
        alone: bool = False,
        cuda_graphs: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        """`kernels`, `compiled` and `cuda_graphs` are the trainer's options; `alone` leaves out the exchange of
        gradients, which the trainer never does."""
        torch.manual_seed(setting.seed)
        with setting.device:  # a processor takes long to draw the weights of a large model
            model = build_model(setting.size.architecture(setting.dropout), None)
        self.model = model
        loss_of = token_loss(model, kernels, setting.bfloat16, compiled, False, setting.device)
        if setting.ranks.world_size > 1 and not alone:
            overlap = overlap_pays(TrainConfig.ddp_overlap, setting.device)
            loss_of = replicate(loss_of, setting.device, TrainConfig.ddp_bucket_cap_mb, False, overlap)
            keep_with_gloo(loss_of, setting)
        self.optimizer = make_optimizer(model, WEIGHT_DECAY)
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
        loader = Loader(blocks, batches, 0, setting.device)
        passes = make_passes(
            cuda_graphs, loss_of, self.optimizer, 1, (setting.batch_size, setting.length), setting.device
        )
        self._results = train_steps(
            loss_of, self.optimizer, loader, plan, StopRequest(), setting.device, heartbeat, passes=passes
        )

    def steps(self, count: int) -> Any:
        """See `Subject`."""
        return [next(self._results).loss for _ in range(count)][-1]

    def close(self) -> None:
        """See `Subject`."""
        self._results.close()  # type: ignore[attr-defined]
        self._beats.close()
