"""What came out of a run, for a reader and as `summary.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from training.display import clock
from training.manifest import read_manifest, step_of
from training.metrics import bit_exact, read_rows, skipped_steps
from training.prompt import question_alone
from training.run_directory import RunDirectory
from training.sample import Sample


def read_summary(run: RunDirectory) -> dict[str, Any] | None:
    """The summary of a complete run; None where there is none that can be read."""
    try:
        return json.loads(run.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def summarise(
    run: RunDirectory,
    checkpoint: Path,
    epochs: float,
    world_size: int,
    device: str,
    train_seconds: float,
    age: float,
    start_seconds: Mapping[str, float],
    samples: Sequence[Sample],
) -> dict[str, Any]:
    """The summary of a complete run, its figures read from the metrics of all attempts; losses and speed are
    None where no step was logged.

    Args:
        run: the run.
        checkpoint: the last one.
        epochs: passes over the training data.
        world_size: ranks of this attempt.
        device: what they trained on.
        train_seconds: that this attempt spent on optimizer steps, without the compilation.
        age: seconds since this attempt's process began.
        start_seconds: of them until its first step, by phase.
        samples: answers of the trained model.
    """
    rows = read_rows(run.metrics)
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row]
    held_out = evaluations[-1] if evaluations else {"eval_loss": None, "perplexity": None}
    return {
        "steps": step_of(checkpoint),
        "epochs": round(epochs, 6),
        "world_size": world_size,
        "device": device,
        "seconds": round(train_seconds, 3),
        "attempt_seconds": round(age, 3),
        "start_seconds": dict(start_seconds),
        "bit_exact": bit_exact(rows),
        "skipped_steps": skipped_steps(rows, step_of(checkpoint)),
        "tokens_per_second": median(row["tokens_per_second"] for row in steps) if steps else None,
        "first_loss": steps[0]["loss"] if steps else None,
        "final_loss": steps[-1]["loss"] if steps else None,
        "eval_loss": held_out["eval_loss"],
        "perplexity": held_out["perplexity"],
        "samples": [asdict(sample) for sample in samples],
        "run_directory": str(run.root.absolute()),
        "metrics": str(run.metrics.absolute()),
        "checkpoint": str(checkpoint.absolute()),
        "weights_sha256": read_manifest(checkpoint).weights_sha256,
    }


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary as lines."""

    def number(value: float | None, form: str) -> str:
        return "none" if value is None else format(value, form)

    speed = number(summary["tokens_per_second"], ",.0f")
    first, final = number(summary["first_loss"], ".4f"), number(summary["final_loss"], ".4f")
    share = summary["seconds"] / summary["attempt_seconds"]
    lines = [
        f"complete: {summary['steps']} steps, {summary['epochs']:.2f} epochs",
        f"  ranks       {summary['world_size']} on {summary['device']}",
        f"  speed       {speed} tokens/s, {clock(summary['seconds'])} of training",
        f"  effective   {share:.0%} of this attempt's {clock(summary['attempt_seconds'])} was training",
        f"  loss        {first} at first, {final} at last",
        f"  held out    loss {number(summary['eval_loss'], '.4f')}, perplexity {number(summary['perplexity'], '.2f')}",
    ]
    if not summary["bit_exact"]:
        lines.append("  not bit-exact: some attempt went on under other conditions than the one before")
    if summary["skipped_steps"]:
        lines.append(f"  skipped     {summary['skipped_steps']} steps whose loss or gradient was not finite")
    for sample in summary["samples"]:
        lines += [
            f"  sample      {_short(sample['prompt'])}",
            f"    answer    {_short(sample['answer'])}",
            f"    expected  {_short(sample['expected'])}",
        ]
    lines += [
        f"  model       {summary['checkpoint']}",
        f"  metrics     {summary['metrics']}",
        f"  all in      {summary['run_directory']}",
    ]
    return "\n".join(lines)


def _short(text: str, limit: int = 160) -> str:
    """On one line: of a long prompt the end, where the question stands, of others the beginning."""
    line = " ".join(question_alone(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
