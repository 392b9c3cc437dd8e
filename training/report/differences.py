"""What differs between runs: what they were given, and what came out."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from training.config import option_name
from training.report.by_step import as_perplexity
from training.report.run import Run

ALIKE_BY_NATURE = ("--experiment-name", "--output-dir", "--config", "--report-interval")
"""Options that name a run, or say nothing of what it computes."""


class Row(NamedTuple):
    """A fact, with its value in each run."""

    name: str
    values: Sequence[str]


def options(runs: Sequence[Run]) -> list[Row]:
    """The options and the number of ranks, in the order of the trainer's help."""
    names = list(dict.fromkeys(name for run in runs for name in run.options))
    rows = [Row(option_name(name), [option_text(run.options.get(name, "")) for run in runs]) for name in names]
    return [*rows, Row("ranks", [option_text(run.world_size) for run in runs])]


def different_options(runs: Sequence[Run]) -> list[Row]:
    """Those of them that are not the same everywhere."""
    return [row for row in options(runs) if row.name not in ALIKE_BY_NATURE and len(set(row.values)) > 1]


def results(runs: Sequence[Run]) -> list[Row]:
    """What came out of each run, a dash where it is not known."""
    return [
        Row("state", [run.state for run in runs]),
        Row("steps", [_shown(_last_step(run), ",.0f") for run in runs]),
        Row("loss", [_shown(run.last("loss"), ".4f") for run in runs]),
        Row("held-out loss", [_shown(run.last("eval_loss"), ".4f") for run in runs]),
        Row("perplexity", [_shown(_perplexity(run), ".2f") for run in runs]),
        Row("tokens/s, median", [_shown(_median(run, "tokens_per_second"), ",.0f") for run in runs]),
        Row("MFU, median", [_shown(_median(run, "mfu"), ".1%") for run in runs]),
        Row("attempts", [str(len(run.attempts)) if run.attempts else "–" for run in runs]),
        Row("training kept", [_shown(_effective(run), ".1%") for run in runs]),
    ]


def option_text(value: object) -> str:
    """An option's value for people."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _last_step(run: Run) -> float | None:
    series = run.series.get("loss")
    return series.steps[-1] if series else None


def _perplexity(run: Run) -> float | None:
    loss = run.last("eval_loss")
    return None if loss is None else as_perplexity(loss)


def _median(run: Run, name: str) -> float | None:
    series = run.series.get(name)
    return median(series.values) if series else None


def _effective(run: Run) -> float | None:
    """Share of training whose result is kept in all time of the attempts."""
    spent = [attempt.accounting for attempt in run.attempts]
    whole = sum(sum(parts.values()) for parts in spent)
    return sum(parts.get("train", 0.0) for parts in spent) / whole if whole else None


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
