"""One attempt while it runs: an mpirun that starts nothing, and does not end when it is told to."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

# In a process of its own: at its end it kills whatever its process has started.
NO_RANK_EVER_BEGINS = """
import json, os, signal, sys
from pathlib import Path
from cluster import supervise
from cluster.allocation import Allocation, Host
from cluster.channel import Listener
from cluster.rundir import Attempt, create_directories
from cluster.signals import Requests

supervise.START_WITHIN = supervise.GRACE_TO_STOP = 0.2
folder = Path(sys.argv[1])
attempt = Attempt(1, folder, folder / "attempt-0001", folder / "attempt-0001/logs")
create_directories(attempt)
two = Allocation("slurm", (Host("n1", 1, 0, 1), Host("n2", 1, 0, 1)))
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is started here inherits it
mpirun, requests = ["sleep", "600"], Requests(lambda: "")
supervision = supervise.Supervision(
    mpirun, dict(os.environ), {}, two, attempt, Listener("127.0.0.1"), requests, 60.0, lambda event, **facts: None
)
end = supervision.run()
print(json.dumps([end.status, end.lost_hosts, end.killed]))
"""


def test_hosts_whose_ranks_never_begin_are_lost_and_an_mpirun_that_is_deaf_is_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_RANK_EVER_BEGINS, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [-9, ["n1", "n2"], False]
