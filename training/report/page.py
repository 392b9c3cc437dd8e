"""The page: one file with everything in it. What comes from a run's files is text to it, never markup: jinja2 escapes
it, and the page's own policy lets no request out and no script in."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from training.report import differences
from training.report.by_attempt import utc
from training.report.charts import figures_of, figures_together, labels
from training.report.figure import VEGA_LITE, Figure
from training.report.run import Attempt, Run, mapping, number
from training.report.themes import THEMES

HERE = Path(__file__).parent
LONGEST_TEXT = 2000
"""Characters of a sample or a message that are shown."""
MOST_RANKS = 256
"""Up to so many each rank has a line in the rank map, else each host."""
MOST_LINES = 1000
"""Of the rank map, and of what happened."""


class Part(NamedTuple):
    """What is shown of one run alone."""

    name: str
    run: Run
    figures: Sequence[Figure]
    attempts: Sequence[Mapping[str, str]]
    happened: Sequence[tuple[str, str, str]]
    ranks: Sequence[tuple[str, ...]]
    ranks_left_out: int
    samples: Sequence[Mapping[str, str]]


def render(runs: Sequence[Run], now: float) -> str:
    """The page as HTML.

    Args:
        runs: at least one; several lie over one another.
        now: seconds since 1970, when it is written.
    """
    import jinja2

    names = labels(runs)
    together = figures_together(runs)
    parts = [_part(name, run, place, now) for place, (name, run) in enumerate(zip(names, runs, strict=True), 1)]
    figures = [*together, *(figure for part in parts for figure in part.figures)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        title=" · ".join(names),
        names=names,
        several=len(runs) > 1,
        written=utc(now),
        nonce=secrets.token_urlsafe(16),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=_script(),
        results=differences.results(runs),
        options=differences.different_options(runs) if len(runs) > 1 else differences.options(runs),
        together=together,
        parts=parts,
        drawn={figure.key: {**figure.spec, "description": figure.sentence} for figure in figures},
        themes=THEMES,
    )


@cache
def _script() -> str:
    """What draws: Vega-Lite, and the page's own script."""
    import vl_convert

    script = vl_convert.javascript_bundle((HERE / "page.js").read_text(encoding="utf-8"), VEGA_LITE)
    # Of the closing tag alone HTML takes notice within a script.
    return script.replace("</script", r"<\/script")


def _part(name: str, run: Run, place: int, now: float) -> Part:
    figures = [replace(figure, key=f"{figure.key}-{place}") for figure in figures_of(run, now)]
    ranks = _rank_map(run)
    return Part(
        name,
        run,
        figures,
        [_attempt(attempt) for attempt in run.attempts],
        _happened(run)[-MOST_LINES:],
        ranks[:MOST_LINES],
        max(0, len(ranks) - MOST_LINES),
        _samples(run),
    )


def _attempt(attempt: Attempt) -> dict[str, str]:
    def known(name: str, form: str = "{}") -> str:
        value = attempt.verdict.get(name)
        return "" if value is None else form.format(value)

    steps = mapping(attempt.facts.get("steps"))
    resumed, last, saved = ("–" if steps.get(name) is None else steps[name] for name in ("resumed", "last", "saved"))
    guilty = " ".join(filter(None, (known("rank", "rank {}"), known("host", "on {}"), known("gpu", "GPU {}"))))
    return {
        "number": str(attempt.number),
        "started": utc(attempt.started),
        "ended": "" if attempt.ended is None else utc(attempt.ended),
        "job": "" if attempt.facts.get("job_id") is None else str(attempt.facts["job_id"]),
        "verdict": attempt.kind or "none yet",
        "guilty": guilty,
        "steps": f"{resumed} → {last}, saved {saved}" if steps else "",
        "summary": known("summary")[:LONGEST_TEXT],
        "detail": known("detail")[-LONGEST_TEXT:],
    }


def _happened(run: Run) -> list[tuple[str, str, str]]:
    """When, what, and more: what the trainer told by step, then what the launcher told by time."""
    rows: list[tuple[str, str, str]] = []
    for row in run.happened:
        if "checkpoint_bytes" in row:
            size, seconds = number(row["checkpoint_bytes"]), number(row.get("checkpoint_seconds"))
            more = f"{(size or 0.0) / 1e6:,.1f} MB in {seconds or 0.0:.2f} s"
            rows.append((f"step {row['step']:,}", "checkpoint", more))
        else:
            rows.append((f"step {row['step']:,}", str(row["event"]), _facts(row, ("step", "event"))))
    events = ((utc(event["time"]), str(event.get("event")), _facts(event, ("time", "event"))) for event in run.events)
    return [*rows, *events]


def _facts(row: Mapping[str, Any], apart: Sequence[str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items() if name not in apart)[:LONGEST_TEXT]


def _rank_map(run: Run) -> list[tuple[str, ...]]:
    """Rank, host, local rank and GPU; of many ranks those of a host together."""
    by_rank = sum(ranks for _, ranks, _ in run.hosts) <= MOST_RANKS
    rows: list[tuple[str, ...]] = []
    first = 0
    for host, ranks, gpus in run.hosts:
        if by_rank:
            rows += [
                (str(first + local), host, str(local), str(local % gpus) if gpus else "–") for local in range(ranks)
            ]
        else:
            devices = "–" if not gpus else f"0 to {gpus - 1}"
            rows.append((f"{first} to {first + ranks - 1}", host, f"0 to {ranks - 1}", devices))
        first += ranks
    return rows


def _samples(run: Run) -> list[dict[str, str]]:
    samples = run.summary.get("samples")
    return [
        {name: str(sample.get(name, ""))[:LONGEST_TEXT] for name in ("prompt", "answer", "expected")}
        for sample in map(mapping, samples if isinstance(samples, list) else [])
    ]
