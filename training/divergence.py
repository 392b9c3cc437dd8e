"""Numbers that are not finite, or out of the ordinary: whose they are, and what is said about it."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from training.errors import PeerError

# So many norms must have been seen before one can be out of the ordinary, and so many are remembered.
FEWEST, REMEMBERED = 20, 100
OUTLIER_FACTOR = 10.0
SKIPPED, OUTLIER = "skipped", "grad_norm_outlier"
"""Events of `metrics.jsonl`."""
NAMED = 8
"""Ranks and sequences, at most."""


@dataclass(frozen=True)
class NotFinite:
    """A step whose loss or gradient is not finite; every rank has the same."""

    step: int
    what: Literal["loss", "gradient"]
    grad_norm: float
    """Of the gradient summed over the ranks, before clipping."""
    guilty: Mapping[int, Sequence[int]]
    """The ranks where it came up, each with the indices of the sequences that it read in this step; empty where no
    rank's own gradient shows it."""

    def __str__(self) -> str:
        if not self.guilty:
            return (
                f"the gradient's norm is {self.grad_norm} at step {self.step}, on which rank is unknown: no rank's own "
                f"gradient shows it when computed again"
            )
        return f"the {self.what} is not finite at step {self.step} on {_places(self.guilty)}"

    def row(self) -> dict[str, Any]:
        """The step as an event of `metrics.jsonl`."""
        return {
            "step": self.step,
            "event": SKIPPED,
            "what": self.what,
            "ranks": sorted(self.guilty),
            "sequences": {str(rank): list(read) for rank, read in self.guilty.items()},
        }

    def error(self, rank: int, skipped: int) -> Exception:
        """What `rank` raises: the guilty ones the error itself, so that nobody takes their victims for them."""
        before = f" (skipped before: {skipped})" if skipped else ""
        if self.guilty and rank not in self.guilty:
            return PeerError(f"{self}{before}")
        return FloatingPointError(
            f"{self}; the weights were not updated{before}: lower --lr, raise --warmup-steps, look at these sequences, "
            f"or give --max-skipped-steps"
        )


def _places(guilty: Mapping[int, Sequence[int]]) -> str:
    """`rank 2 (sequences 17, 4)`; of many ranks and sequences the first."""
    ranks = sorted(guilty)
    places = [f"rank {rank} (sequences {_some(guilty[rank])})" for rank in ranks[:NAMED]]
    return ", ".join(places) + (f" and {len(ranks) - NAMED} ranks more" if len(ranks) > NAMED else "")


def _some(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return ", ".join(map(str, numbers[:NAMED])) + more


def usual_norm(norm: float, before: Sequence[float]) -> float | None:
    """The usual norm, where `norm` is out of the ordinary: more than 10 times the median of those before it. None
    where it is not, or too few are known."""
    if len(before) < FEWEST:
        return None
    usual = median(before)
    return usual if norm > OUTLIER_FACTOR * usual else None


class NormWatch:
    """Remembers the gradient norms of the last steps."""

    def __init__(self, warmup: int) -> None:
        """`warmup`: the steps of it are left out, since the norm falls steeply in them."""
        self._warmup = warmup
        self._norms: deque[float] = deque(maxlen=REMEMBERED)

    def outlier(self, step: int, norm: float) -> dict[str, Any] | None:
        """The event of a norm that is out of the ordinary; None where it is not."""
        if step <= self._warmup or not math.isfinite(norm):
            return None
        usual = usual_norm(norm, self._norms)
        self._norms.append(norm)
        if usual is None:
            return None
        return {"step": step, "event": OUTLIER, "grad_norm": norm, "usual": usual}


def outlier_text(event: Mapping[str, Any]) -> str:
    """The line of a gradient norm that is out of the ordinary."""
    return f"warning: gradient norm {event['grad_norm']:.3g} at step {event['step']}, usual is {event['usual']:.3g}"
