"""A tiny model with its optimizer, and a saver for it: what the tests of checkpoints save."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from training.config import TrainConfig
from training.demo import demo_architecture, demo_tokenizer
from training.errors import InputError
from training.manifest import DamagedError, check_files, read_manifest
from training.model import build_model
from training.optimizer import make_optimizer
from training.random_state import capture
from training.saver import Saver

CPU = torch.device("cpu")
TINY = demo_architecture() | {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}


def tiny(seed: int = 0) -> tuple[Any, torch.optim.Optimizer]:
    """A tiny model after one step of its optimizer."""
    torch.manual_seed(seed)
    model = build_model(TINY, None)
    optimizer = make_optimizer(model, 0.1)
    optimizer.param_groups[0]["lr"] = 0.1
    train_on(model, optimizer)
    return model, optimizer


def train_on(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """One step more."""
    tokens = torch.arange(16).view(1, 16)
    optimizer.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def saver_of(checkpoints: Path, model: Any, optimizer: torch.optim.Optimizer, **options: Any) -> Saver:
    """A saver; of the first incarnation, alone, unless told otherwise."""
    checkpoints.mkdir(exist_ok=True)
    incarnation = options.pop("incarnation", 1)
    return Saver(checkpoints, incarnation, 1, model, demo_tokenizer(), optimizer, CPU, **options)


def save(saver: Saver, step: int, loss: float | None = None) -> Path:
    """Save a step and wait for it; its folder."""
    saver.save(step, step * 4, [capture(CPU)], loss)
    saver.finish()
    [report] = saver.reports()
    return report.folder


def flip_a_bit(path: Path, bit: int | None = None) -> None:
    """In the middle of the file, or this one of all its bits."""
    content = bytearray(path.read_bytes())
    bit = 8 * (len(content) // 2) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def find_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None where every file is as it was written."""
    try:
        check_files(folder, read_manifest(folder))
    except (DamagedError, InputError) as error:
        return str(error)
    return None


def unreadable(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """The system refuses to open this file, with that error."""
    opened = io.open

    def refuse(file: Any, *arguments: Any, **options: Any) -> Any:
        if file == path:
            raise OSError(number, os.strerror(number), str(path))
        return opened(file, *arguments, **options)

    monkeypatch.setattr(io, "open", refuse)


def tiny_run(root: Path, losses: dict[int, float]) -> Path:
    """A run directory with a checkpoint for each step, as a training would leave it; `losses` are the held-out ones."""
    root.mkdir(parents=True)
    model, optimizer = tiny()
    saver = saver_of(root / "checkpoints", model, optimizer, keep=len(losses))
    rows: list[dict[str, Any]] = []
    for step, loss in losses.items():
        train_on(model, optimizer)
        save(saver, step, loss)
        rows += [{"step": step, "epoch": 0.1, "loss": loss + 0.5, "tokens_per_second": 100.0}]
        rows += [{"step": step, "eval_loss": loss}]
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(dataset_name="demo", model_name="demo", seq_length=16, batch_size=4).to_json()
    identity = {"--model-name": "demo", "--dataset-name": "demo"}
    (root / "config.json").write_text(json.dumps({"config": config, "identity": identity, "world_size": 1}))
    return root
