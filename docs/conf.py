"""Sphinx configuration: ``make docs`` builds with it, and a warning is an error there."""

project = "slurm-mpi-train"
author = "the slurm-mpi-train authors"
copyright = "the slurm-mpi-train authors, Apache-2.0"

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "slurm-mpi-train"
