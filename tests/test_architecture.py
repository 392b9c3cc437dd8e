"""The walls between the rooms: who imports whom, and what a command loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from architecture import DRAWING, PACKAGES, drawing, imported_names, module_name, modules, why_not
from conftest import ROOT
from stand_ins import stand_ins


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_stands_in_one_layer(package: str) -> None:
    listed = [name for layer in PACKAGES[package] for name in f"{layer.modules} {layer.leaves}".split()]

    assert sorted(listed) == sorted({module_name(path) for path in modules(package)})


@pytest.mark.parametrize(
    "path", [*modules("cluster"), *modules("training")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_import_goes_down_and_stays_in_its_package(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]

    assert [why for name in imported_names(path) if (why := why_not(package, module_name(path), name))] == []


@pytest.mark.parametrize(
    ("package", "importer", "imported", "why"),
    [
        ("training", "train_llm", "cluster.launch", "training never imports cluster"),
        ("cluster", "checks", "torch.cuda", "cluster never imports torch"),
        ("cluster", "submit", "training.check", "cluster never imports training"),
        ("cluster", "blame", "cluster.repeated", "blame is a leaf, and imports repeated"),
        ("cluster", "plan", "cluster.submit", "plan (the request) imports submit (commands), which is not below it"),
        (
            "cluster",
            "supervise",
            "cluster.watch.Watch",
            "supervise (the launcher's side) imports watch (the rank's side), which is not below it",
        ),
        ("cluster", "submit_all", "cluster.submit", "submit_all stands in no layer of tests/architecture.py"),
        ("training", "model", "training.loop", "model (model) imports loop (steps), which is not below it"),
    ],
)
def test_a_forbidden_arrow_is_named(package: str, importer: str, imported: str, why: str) -> None:
    assert why_not(package, importer, imported) == why


def test_the_drawing_of_the_imports_is_that_of_the_code() -> None:
    assert DRAWING.read_text() == drawing(), "write it anew: .venv/bin/python tests/architecture.py"


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
