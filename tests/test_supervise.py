"""One attempt while it runs, without ranks: what the launcher makes of an mpirun and of what nodes say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.supervise import WARNINGS_SAID
from conftest import ROOT

# In a process of its own: at its end it kills whatever its process has started.
SUPERVISES = """
import json, os, signal, sys
from pathlib import Path
from cluster import supervise
from cluster.allocation import Allocation, Host
from cluster.channel import Listener
from cluster.rundir import Attempt, create_directories
from cluster.signals import Requests

class Told(Listener):
    said = [(rank, {"node": facts}) for rank, facts in enumerate(json.loads(sys.argv[2]))]

    def exchange(self, seconds):
        said, self.said = self.said, []
        return said or super().exchange(seconds)


supervise.START_WITHIN = supervise.GRACE_TO_STOP = 0.2
folder = Path(sys.argv[1])
attempt = Attempt(1, folder, folder / "attempt-0001", folder / "attempt-0001/logs")
create_directories(attempt)
hosts = Allocation("slurm", tuple(Host(f"n{number}", 1, 0, 1) for number in range(max(2, len(Told.said)))))
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is started here inherits it
mpirun, requests = ["sleep", "600"], Requests(lambda: "")
supervision = supervise.Supervision(
    mpirun, dict(os.environ), {}, hosts, attempt, Told("127.0.0.1"), requests, 60.0
)
end = supervision.run()
print(json.dumps([end.status, end.lost_hosts, end.killed]))
"""


def supervise(folder: Path, *nodes: dict[str, Any]) -> list[str]:
    """What is printed of an attempt on these nodes, or on two that say nothing; no rank ever begins."""
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISES, str(folder), json.dumps(nodes)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_hosts_whose_ranks_never_begin_are_lost_and_an_mpirun_that_is_deaf_is_killed(tmp_path: Path) -> None:
    assert [json.loads(line) for line in supervise(tmp_path)] == [[-9, ["n0", "n1"], False]]


def test_of_many_warnings_about_nodes_the_first_ones_are_said_and_the_others_counted(tmp_path: Path) -> None:
    same = dict.fromkeys(("python", "package", "sources", "torch", "mpirun"), "1.0")
    slow_clock = {**same, "free": {}, "time": 0.0}

    *warnings, more, _ = supervise(tmp_path, *[slow_clock] * (WARNINGS_SAID + 2))

    assert len(warnings) == WARNINGS_SAID
    assert all(line.startswith("warning: the clock of n") for line in warnings)
    assert more == "warning: … and 2 more like these"
