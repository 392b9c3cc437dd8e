"""Long series made short, without losing what stands out."""

from collections.abc import Sequence

Point = tuple[float, float]


def thin(steps: Sequence[float], values: Sequence[float], most: int) -> list[Point]:
    """At most so many points: of equal stretches of the series the lowest and the highest, and its two ends.

    Args:
        steps, values: of one length, by step.
        most: at least 4.
    """
    count = len(steps)
    if count <= most:
        return list(zip(steps, values, strict=True))
    buckets = (most - 2) // 2
    kept = {0, count - 1}
    for bucket in range(buckets):
        inside = range(bucket * count // buckets, (bucket + 1) * count // buckets)
        kept |= {min(inside, key=values.__getitem__), max(inside, key=values.__getitem__)}
    return [(steps[index], values[index]) for index in sorted(kept)]


def means(steps: Sequence[float], values: Sequence[float], most: int) -> list[Point]:
    """At most so many points: the means of equal stretches, each at its last step. For what is stacked."""
    count = len(steps)
    stretches = min(most, count)
    points: list[Point] = []
    for stretch in range(stretches):
        begin, end = stretch * count // stretches, (stretch + 1) * count // stretches
        points.append((steps[end - 1], sum(values[begin:end]) / (end - begin)))
    return points
