"""The transcripts of the documentation are typed on a real Slurm, and print what the pages show."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, cannot_run_here
from slurm_lab import LabUnavailable, SlurmLab
from transcripts import HOME, agree, as_printed, exchanges, files, numbers_of, programs

ENVIRON = {
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    "PYTHONPATH": str(ROOT),
    "SHELL": "/bin/bash",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def without_accounting() -> Iterator[SlurmLab]:
    """A Slurm of two nodes that has neither slurmdbd nor database, beside the other one."""
    nodes, directory = ("r1n1", "r1n2"), Path(tempfile.gettempdir()) / f"slurm-lab-{os.getpid()}-n"
    lab = SlurmLab(directory, nodes=nodes, plain_hosts=(), accounting=False, ends_with_me=True)
    try:
        lab.up()
    except LabUnavailable as error:
        cannot_run_here(str(error))
    yield lab
    lab.down()


def type_all(page: str, lab: SlurmLab, project: Path) -> None:
    """Type every command of the page in `project` on the login node."""
    text = (ROOT / page).read_text()
    for name, content in files(text).items():
        (project / name).write_text(content)
    printed_as: dict[str, str] = {}
    for command, shown in exchanges(text):
        typed = as_printed(command, printed_as).replace(HOME, str(project))
        bash = ["bash", "-c", f"exec 2>&1; {typed}"]
        done = lab.run("ctl", bash, cwd=project, env=ENVIRON, check=False, timeout=300)
        assert agree(shown, done.stdout, project), f"$ {typed}\n{done.stdout}\n── the page shows\n" + "\n".join(shown)
        assert (done.returncode == 0) != any(line.startswith("error: ") for line in shown), f"$ {typed}: {done}"
        printed_as |= numbers_of(shown, done.stdout)


def test_a_first_run_goes_as_its_page_says(slurm: SlurmLab, tmp_path: Path) -> None:
    type_all("docs/first_run.md", slurm, tmp_path)


@pytest.mark.slurm
def test_a_first_run_goes_the_same_way_without_accounting(without_accounting: SlurmLab, tmp_path: Path) -> None:
    sacct = without_accounting.run("ctl", ["sacct"], check=False)
    assert "accounting storage is disabled" in sacct.stderr

    type_all("docs/first_run.md", without_accounting, tmp_path)


@pytest.mark.parametrize("page", ["docs/cluster.md", "docs/operate.md", "docs/sweeps.md"])
def test_the_commands_of_a_page_print_what_it_shows(page: str, slurm: SlurmLab, tmp_path: Path) -> None:
    type_all(page, slurm, tmp_path)


def test_the_python_of_a_page_prints_what_it_shows(slurm: SlurmLab, tmp_path: Path) -> None:
    [(code, shown)] = programs((ROOT / "docs/operate.md").read_text())

    done = slurm.run("ctl", [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRON, check=False, timeout=300)

    assert agree(shown, done.stdout, tmp_path), done


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("step 3/9 · loss 2.59", "step 12/9 · loss 0.0001\n", True),
        ("loss 2.59", "loss –\n", False),
        ("rank 1 on r1n2", "rank 1 on r2n1\n", True),
        ("rank 1 on r1n2", "rank 0 on r1n2\n", False),
        ("2 nodes × 1 rank = 2 ranks", "2 nodes × 2 ranks = 4 ranks\n", False),
        ("rank crash (137)", "rank crash (1)\n", False),
        ("exit status 0 · attempt 1", "exit status 1 · attempt 1\n", False),
        ("a  running  3", "a     running  1,200\n", True),
        ("  a", "a\n", False),
        ("one\n…\nfour", "one\ntwo\nthree\nfour\n", True),
        ("one\n…", "one\n", True),
        ("one", "one\ntwo\n", False),
        ("in …/a.py, line 3", "in /opt/a.py, line 7\n", True),
        ("in …/a.py", "in /opt/b.py\n", False),
        ("/home/you/slurm-mpi-train/outputs/a", "/scratch/here/outputs/a\n", True),
    ],
)
def test_what_a_page_shows_and_what_is_printed_agree_but_for_what_must_differ(
    shown: str, printed: str, same: bool
) -> None:
    assert agree(shown.splitlines(), printed, Path("/scratch/here")) == same


def test_a_process_id_that_is_typed_is_the_one_that_was_printed() -> None:
    assert numbers_of(["rank 1, process 15184"], "rank 1, process 77\n") == {"15184": "77"}
    assert numbers_of(["…", "process 15184"], "process 77\n") == {}
    assert as_printed("kill -9 15184", {"15184": "77"}) == "kill -9 77"
