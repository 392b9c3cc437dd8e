"""The results of a sweep, the best first. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.status import steps_of
from cluster.terminal import or_dash, table
from cluster.verdict import COMPLETED

HELD_OUT, LAST = "held_out_loss", "loss"
WORDS = {HELD_OUT: "held-out loss", LAST: "loss"}


def ranking(facts: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """By which loss, and the runs in its order: complete ones with their `rank` from 1 on, then the others.

    The held-out loss counts where any run has one, else the loss of the last step. A run that is not complete has no
    rank, since its loss still falls.

    Args:
        facts: of each run, as `status.summary` has them.
    """
    by = HELD_OUT if any(fact[HELD_OUT] is not None for fact in facts) else LAST
    ordered = sorted(facts, key=lambda fact: (fact["state"] != COMPLETED, fact[by] is None, fact[by] or 0.0))
    ranked = [fact["state"] == COMPLETED and fact[by] is not None for fact in ordered]
    return by, [
        {**fact, "rank": number if is_ranked else None}
        for number, (fact, is_ranked) in enumerate(zip(ordered, ranked, strict=True), start=1)
    ]


def ranking_lines(name: str, options: Sequence[str], by: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table for people, and what to do next.

    Args:
        name: the sweep's.
        options: of the grid.
        by, runs: the ranking; each run also has its `values` in the grid.
    """
    head = ("#", *options, "state", "step", "held-out loss", "loss", "tokens/s", "run")
    rows = [head, *(_row(run, options) for run in runs)]
    width = len(options)
    lines = table(rows, right=[0, *range(width + 2, width + 6)])
    states = Counter(run["state"] for run in runs)
    lines += ["", f"{name} by {WORDS[by]}: " + ", ".join(f"{number} {state}" for state, number in states.items())]
    if runs and runs[0]["rank"] == 1:
        lines.append(f"best: {runs[0]['run_dir']}")
    return lines


def _row(run: Mapping[str, Any], options: Sequence[str]) -> tuple[str, ...]:
    return (
        or_dash(run["rank"]),
        *(run["values"][option] for option in options),
        run["state"],
        steps_of(run),
        *(or_dash(run[loss], ".4f") for loss in (HELD_OUT, LAST)),
        or_dash(run["tokens_per_second"], ",.0f"),
        run["experiment"],
    )
