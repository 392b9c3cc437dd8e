"""Which figures there are of runs, alone and together. Pure: runs in, figures out. The page draws them in the reader's
browser, `training.report.png` without one."""

from collections.abc import Sequence

from training.report.by_attempt import spent_figure, time_line
from training.report.by_step import CURVES, curve_figure, heat_figure, phase_figure
from training.report.figure import Figure
from training.report.run import Run


def labels(runs: Sequence[Run]) -> list[str]:
    """What the runs are called: by the experiment, by the directory where two share that name, else with a number."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, 1)]
    return names


def figures_together(runs: Sequence[Run]) -> list[Figure]:
    """Those in which several runs lie over one another."""
    names = labels(runs)
    figures = (curve_figure(curve, dict(zip(names, runs, strict=True))) for curve in CURVES)
    return [figure for figure in figures if figure is not None]


def figures_of(run: Run, now: float) -> list[Figure]:
    """Those of one run alone; `now` (seconds since 1970) ends what has no end yet."""
    figures = (phase_figure(run), heat_figure(run), time_line(run, now), spent_figure(run))
    return [figure for figure in figures if figure is not None]
