"""Hugging Face Trainer, as it is: `bf16=True, torch_compile=True` on GPUs, everything else by default but what all
subjects share (batch, clipping, weight decay, learning rate).

`Trainer.train` is one long call. It runs in a thread of its own, and a callback at the end of each step holds it where
the bench wants it to wait for the other subjects' turns; only one of the two threads ever runs.
"""

import queue
import tempfile
import threading
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.bench.chapter import Sequences, plain_model
from training.bench.setting import ENDLESS, MAX_GRAD_NORM, PEAK_LR, WARMUP_STEPS, WEIGHT_DECAY, Setting, keep_with_gloo


class TrainerStep:
    """The Trainer, by steps."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(setting.seed)
        self._folder = tempfile.TemporaryDirectory()
        self.model = plain_model(setting)
        arguments = TrainingArguments(
            output_dir=self._folder.name,
            per_device_train_batch_size=setting.batch_size,
            max_steps=ENDLESS,
            learning_rate=PEAK_LR,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=WARMUP_STEPS,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            bf16=setting.bfloat16,
            torch_compile=setting.compiled,
            use_cpu=setting.device.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=setting.seed,
        )
        if setting.device.type == "cuda":
            # One process that sees several GPUs would split its batch over all of them.
            arguments._n_gpu = 1
        self._setting = setting
        self._turns = _Turns()
        self._trainer = _KeepsLoss(self.model, arguments, train_dataset=Sequences(setting), callbacks=[self._turns])
        self._trainer.remove_callback(PrinterCallback)
        self._thread = threading.Thread(target=self._train, name="trainer", daemon=True)

    def _train(self) -> None:
        try:
            self._turns.wait_for_turn()
            if self._setting.device.type == "cuda":
                torch.cuda.set_device(self._setting.device)
            if not self._turns.over:
                self._trainer.train()
        except BaseException as error:
            self._turns.failed(error)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The Trainer makes it at its first step."""
        assert self._trainer.optimizer is not None
        return self._trainer.optimizer

    def steps(self, count: int) -> Any:
        """See `Subject`."""
        if not self._thread.ident:
            self._thread.start()
        self._turns.take(count)
        return self._trainer.loss

    def close(self) -> None:
        """See `Subject`."""
        if self._thread.is_alive():
            self._turns.end()
            self._thread.join()
        keep_with_gloo(self._trainer.model_wrapped, self._setting)
        self._trainer.accelerator.free_memory()
        self._folder.cleanup()


class _KeepsLoss(Trainer):
    """Its own step, whose loss is kept without waiting for it."""

    loss: torch.Tensor

    def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
        self.loss = super().training_step(*given, **named)
        return self.loss


class _Turns(TrainerCallback):
    """Lets the Trainer's thread make as many steps as the other one asks for, and no more."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._left = 0
        self.over = False

    def take(self, count: int) -> None:
        """From the bench: make so many steps, and return when they are made."""
        self._asked.put(count)
        if (error := self._answers.get()) is not None:
            raise error

    def end(self) -> None:
        """From the bench: no more steps."""
        self._asked.put(0)

    def failed(self, error: BaseException) -> None:
        """From the Trainer's thread: it ends by this."""
        self._answers.put(error)

    def wait_for_turn(self) -> None:
        """From the Trainer's thread."""
        self._left = self._asked.get()
        self.over = self._left == 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> TrainerControl:
        self._left -= 1
        if self._left == 0:
            self._answers.put(None)
            self.wait_for_turn()
        control.should_training_stop = self.over
        return control
