"""A world of one rank, without any mpirun: the test is its launcher."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.allocation import Allocation, Host
from cluster.channel import Listener
from cluster.records import Records
from conftest import ROOT
from waiting import wait_until

AS_MPICH = {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0"}


class OneRank:
    """A rank that runs `program`, and what it said so far."""

    def __init__(self, tmp_path: Path, program: list[str], **environ: str) -> None:
        attempt = tmp_path / "attempt-0001"
        for directory in ("errors", "logs"):
            (attempt / directory).mkdir(parents=True, exist_ok=True)
        self.listener = Listener("127.0.0.1")
        self.heard: list[dict[str, Any]] = []
        plan = {
            **Allocation("local", (Host("localhost", 1, 0, 2),)).to_json(),
            "attempt": 1,
            "run_dir": str(tmp_path),
            "attempt_dir": str(attempt),
            "log_dir": str(attempt / "logs"),
            "master_addr": "127.0.0.1",
            "master_port": 20000,
            "store_token": "known to all ranks",
            "launcher": [self.listener.address, self.listener.port],
            "token": self.listener.token,
        }
        (attempt / "plan.json").write_text(json.dumps(plan))
        self._records = Records(attempt / "ranks.jsonl", {})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.rank", str(attempt / "plan.json"), "--", *program],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **AS_MPICH, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def listen(self, seconds: float = 0.05) -> None:
        """What a launcher does: say that it lives, take in what comes, keep the records, let the rank leave."""
        self.listener.tell({})
        for rank, message in self.listener.exchange(seconds):
            self.heard.append(message)
            if record := message.get("record"):
                self._records.add(record)
                if record["state"] != "started":
                    self.listener.tell({"do": "leave"}, [rank])

    def listen_until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        def holds() -> object:
            self.listen()
            return condition()

        wait_until(holds, seconds)

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Listen to the rank's end."""
        self.listen_until(lambda: self.process.poll() is not None, 120.0)
        self.listen_until(lambda: any(message.get("closed") for message in self.heard))
        out, err = self.process.communicate()
        self.listener.close()
        self._records.close()
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)


def run_rank(tmp_path: Path, program: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Run one rank to its end."""
    return OneRank(tmp_path, program, **environ).finish()
