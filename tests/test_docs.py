"""What the documentation lists is what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import errors
from cluster.__main__ import VERBS
from cluster.allocation import from_hosts
from cluster.environment import rank_environment
from cluster.sequel import RESTART, Situation, sequel
from cluster.verdict import Verdict
from conftest import ROOT
from reference import PAGE, page, verdict_kinds
from training.loop import PHASES, StepResult
from training.metrics import COLUMNS, step_row
from training.saver import SaveReport


@pytest.mark.parametrize("package", ["cluster", "training", "training.bench", "training.report"])
def test_every_module_has_its_line_in_the_walk(package: str) -> None:
    walk = (ROOT / "docs/walk.md").read_text()
    rooms = walk[walk.index(f"## Rooms of `{package}`") :].split("\n## ")[0]

    listed = {line.split("`")[1] for line in rooms.splitlines() if line.startswith("| `")}

    assert listed == {path.stem for path in (ROOT / package.replace(".", "/")).glob("*.py")} - {"__init__"}


def test_every_verb_and_every_exit_status_stands_in_the_tables_of_exit_statuses() -> None:
    page = (ROOT / "docs/environment.md").read_text().partition("\n## Exit statuses\n")[2]
    first = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    statuses = {value for name, value in vars(errors).items() if name.isupper()}

    assert {int(cell) for cell in first if cell.isdecimal()} == statuses
    assert [cell for cell in first if cell.startswith("`") and " " not in cell] == [f"`{verb}`" for verb in VERBS]


def test_the_reference_is_what_the_code_says() -> None:
    assert PAGE.read_text() == page(), "write it anew: make pages"


def test_every_variable_of_a_rank_is_explained() -> None:
    contract = (ROOT / "docs/environment.md").read_text().partition("## What each rank finds")[2].partition("\n## ")[0]
    plan = {"master_addr": "a", "master_port": 1, "store_token": "t", "attempt_dir": "d", "run_dir": "r", "attempt": 1}
    two = from_hosts("a:2")

    assert [name for name in rank_environment(plan, two, two.place(1)) if f"`{name}`" not in contract] == []


def test_the_rooms_and_tests_of_the_page_for_newcomers_are_there() -> None:
    named = set(re.findall(r"`([a-z0-9_/]+\.py)", (ROOT / "docs/newcomer.md").read_text()))

    assert [name for name in sorted(named) if not (ROOT / name).exists() and not (ROOT / "tests" / name).exists()] == []


def test_every_verdict_has_its_advice_and_says_whether_another_attempt_follows() -> None:
    page = (ROOT / "docs/failed.md").read_text().partition("\n## By verdict\n")[2].partition("\n## ")[0]
    again = {row[1].strip(" `"): row[4].strip() for line in page.splitlines() if len(row := line.split("|")) == 7}
    in_a_job = Situation(3, True, 2, 2, False, None, False, False)
    attempts = [{"attempt": 1, "launch": "7", "steps": {"resumed": 0, "last": 9, "saved": 5}, "verdict": None}]

    restarted = [
        kind for kind in verdict_kinds() if sequel(Verdict(kind, 1, "it broke"), attempts, in_a_job).kind == RESTART
    ]

    assert set(verdict_kinds()) < again.keys()
    assert {kind for kind, said in again.items() if said.startswith("yes")} == set(restarted)


def test_the_script_of_the_page_for_scripts_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs/own_script.md").read_text()
    script = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_script.py").write_text(script.replace("0.1", "0"))

    launch = [sys.executable, "-m", "cluster.launch", "--cluster", "local", "--ranks-per-node", "2", "--"]
    done = subprocess.run(
        [*launch, sys.executable, "my_script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 0 of 2: done" in done.stdout


def test_every_column_of_metrics_is_explained() -> None:
    result = StepResult(1, 2.0, 1e-3, 1.0, 0.5, dict.fromkeys(PHASES, 0.1), stop=False, save=False)
    step = step_row(result, 0.1, 512, 0.4, {"memory_peak_bytes": 1, "memory_allocated_bytes": 1})
    save = SaveReport(step=1, seconds=1.0, blocking_seconds=0.1, bytes=7, folder=ROOT).row()

    assert {*step, *save, "eval_loss", "perplexity", "event"} == COLUMNS.keys()
