"""The walls between the rooms: who imports whom, and what a command loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from stand_ins import stand_ins

HEAVY = {"torch", "transformers", "datasets"}


def imported_packages(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("module", sorted((ROOT / "cluster").glob("*.py")), ids=lambda path: path.name)
def test_cluster_imports_neither_training_nor_anything_heavy(module: Path) -> None:
    assert not imported_packages(module) & {"training", *HEAVY}


@pytest.mark.parametrize(
    "module", sorted((ROOT / "training").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_training_knows_no_launcher(module: Path) -> None:
    assert not imported_packages(module) & {"cluster", "submitit"}


@pytest.mark.parametrize(
    "module",
    [path for path in sorted((ROOT / "training").rglob("*.py")) if path.name != "ranks.py"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_only_the_table_of_launchers_reads_a_rank_variable(module: Path) -> None:
    text = module.read_text()
    assert "OMPI_COMM_WORLD" not in text
    assert '"SLURM_PROCID"' not in text
    assert '"RANK"' not in text


LOADED = """
import runpy, sys
sys.argv = ["cluster.submit", *sys.argv[1:]]
try:
    runpy.run_module("cluster.submit", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(sorted({"torch", "transformers", "datasets", "submitit", "numpy", "training"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--cluster", "slurm", "--dry-run"], ["--cluster", "local", "--dry-run"]], ids=" ".join
)
def test_help_and_dry_run_load_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": stand_ins(tmp_path, sbatch="")},
    )

    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
