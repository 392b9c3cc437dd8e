"""The same figures as pictures, drawn without a browser."""

from collections.abc import Sequence
from pathlib import Path

from training.report.figure import VEGA_LITE, Figure
from training.report.themes import THEMES

WIDTH, SCALE = 800, 2
"""Pixels, and how many of a picture's make one of them."""


def write_pictures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write FOLDER/<key>.png for each figure, on a light background; the folder is made where there is none."""
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for figure in figures:
        spec = {**figure.spec, "width": WIDTH, "title": figure.title}
        path = folder / f"{figure.key}.png"
        path.write_bytes(vl_convert.vegalite_to_png(spec, VEGA_LITE, config=THEMES["light"], scale=SCALE))
        written.append(path)
    return written
