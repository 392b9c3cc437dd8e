"""How plots look: one of Vega's configurations for each background."""

from collections.abc import Sequence
from typing import Any


def theme(ink: str, paper: str, grid: str, lines: Sequence[str], heat: str) -> dict[str, Any]:
    """Vega's configuration for one background."""
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": grid, "domainColor": ink, "tickColor": ink}
    return {
        "background": paper,
        "font": "system-ui, sans-serif",
        "axis": {**axis, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelSeparation": 6},
        "legend": {"labelColor": ink, "titleColor": ink, "labelLimit": 240, "labelFontSize": 12, "columns": 6},
        "title": {"color": ink, "anchor": "start"},
        "view": {"stroke": grid},
        "rule": {"color": ink},
        "range": {"category": list(lines), "heatmap": {"scheme": heat}},
    }


THEMES = {
    "light": theme(
        "#1b1f24",
        "#ffffff",
        "#dfe3e8",
        ["#0b5cad", "#b54708", "#067647", "#7a2fb0", "#a11043", "#0e7490", "#6b5900", "#475467"],
        "blues",
    ),
    "dark": theme(
        "#e6e9ed",
        "#14181d",
        "#343b44",
        ["#6cb6ff", "#f5a35c", "#5fd39a", "#c9a0f5", "#ff8fb0", "#67d5e6", "#e0cc5a", "#aeb7c2"],
        "viridis",
    ),
}
