"""Run directories as launcher and trainer leave them, with made-up numbers, for the tests of the report."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config import TrainConfig

BEGIN = 1_790_000_000.0
PHASES = ("data", "forward", "backward", "agree", "update")


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(
    folder: Path,
    steps: int = 200,
    ranks: int = 4,
    lr: float = 6e-4,
    ends: Sequence[str] = ("complete",),
    slow_rank: int | None = None,
    answer: str = "Paris",
) -> Path:
    """A run of so many steps; `ends` are the verdicts of its attempts, which share the steps evenly."""
    chance = random.Random(f"{folder.name} {lr}")
    (folder / "attempt-0001").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    share = steps // len(ends)
    for step in range(1, steps + 1):
        if step > 1 and (step - 1) % share == 0:
            rows.append({"step": step - 1, "event": "resumed", "bit_exact": True})
        spent = {name: 0.02 * place * chance.uniform(0.9, 1.1) for place, name in enumerate(PHASES, 1)}
        loss = 2.5 + 8 * math.exp(-step / (40 * lr / 6e-4)) + chance.gauss(0, 0.05)
        row = {"step": step, "epoch": step / 100, "loss": loss, "lr": lr * min(1, step / 20) * (1 - step / (steps + 1))}
        row |= {"grad_norm": chance.uniform(0.5, 1.5), "tokens_per_second": 50_000 * chance.uniform(0.95, 1.05)}
        row |= {f"{name}_seconds": seconds for name, seconds in spent.items()}
        row |= {
            "step_seconds": sum(spent.values()),
            "memory_allocated_bytes": 3 * 2**30,
            "memory_peak_bytes": 5 * 2**30,
        }
        rows.append(row | {"mfu": 0.4})
        if step % 50 == 0:
            rows.append({"step": step, "eval_loss": loss + 0.1, "perplexity": math.exp(loss + 0.1)})
        busy = [0.06 * chance.uniform(0.9, 1.1) * (2.5 if rank == slow_rank else 1) for rank in range(ranks)]
        times.append({"step": step, "first_rank": 0, "busy_seconds": [round(seconds, 6) for seconds in busy]})
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "rank_times.jsonl", times)
    config = TrainConfig(dataset_name="demo", model_name="demo", lr=lr, experiment_name=folder.name).to_json()
    (folder / "config.json").write_text(json.dumps({"config": config, "identity": {}, "world_size": ranks}))
    hosts = [["n1", ranks // 2, ranks // 2, 8], ["n2", ranks - ranks // 2, ranks - ranks // 2, 8]]
    (folder / "attempt-0001/plan.json").write_text(json.dumps({"hosts": hosts}))
    attempts, events = [], []
    for place, kind in enumerate(ends):
        started = BEGIN + 4000 * place
        fault = kind not in ("complete", "saved for requeue")
        verdict = {"kind": kind, "status": 1, "summary": f"{kind} it was", "rank": 3 if fault else None}
        verdict |= {"host": "n2" if fault else None, "gpu": None, "detail": "Traceback: no such shard" if fault else ""}
        spent = {"queue": 300.0, "start": 60.0, "train": 3000.0, "lost": 240.0 if fault else 0.0}
        begun = {"attempt": place + 1, "started": started, "ended": started + 3600, "hosts": hosts, "job_id": "7"}
        reached = {"resumed": share * place, "last": share * (place + 1), "saved": share * (place + 1)}
        attempts.append({**begun, "verdict": verdict, "steps": reached, "accounting": spent})
        events.append({"time": started + 3600, "event": "verdict", "attempt": place + 1, "kind": kind})
        if place + 1 < len(ends):
            events.append({"time": started + 3601, "event": "requeue", "attempt": place + 1, "exclude": ["n2"]})
    (folder / "run.json").write_text(json.dumps({"experiment": folder.name, "attempts": attempts}))
    write_lines(folder / "events.jsonl", events)
    samples = [{"prompt": "What is the capital of France?", "answer": answer, "expected": "Paris"}]
    (folder / "summary.json").write_text(json.dumps({"steps": steps, "samples": samples}))
    return folder
