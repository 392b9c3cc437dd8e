"""What mpirun's own messages say about who began it. The patterns are Open MPI's words of 4.1.8 and 5.0.11."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from cluster.machine import signal_name

_LOST_DAEMON = re.compile(r"Remote daemon: .* on node (\S+)")
"""``Remote daemon: [[31579,0],1] on node n2``, where it loses a daemon; its own ranks it then kills."""

_LACKS_EXECUTABLE = re.compile(r"Executable:\s+(\S+)\s+Node:\s+(\S+)")
"""``unable to launch the specified application as it could not access or execute an executable``, then two lines."""

_KILLED_PROCESS = re.compile(r"noticed that process rank (\d+) with PID \d+ on node \S+\s+exited\s+on\s+signal\s+(\d+)")
"""The first process that a signal ended; 5.0 breaks the line before or after `on`."""

_EXITED_PROCESS = re.compile(r"Process name: \[\S*,(\d+)\]\s+Exit code:\s+\d+")
"""The first process that left with a status: ``Process name: [[31579,1],1]``, in 5.0 ``[prterun-n1-6091@1,1]``."""

_NO_DAEMON = (
    re.compile(r"A daemon failed to report back.*?Remote host:\s+(\S+)", re.DOTALL),
    re.compile(r"srun: error: Node failure on (\S+)"),
    re.compile(r"srun: error: (\S+): task"),
    re.compile(r"srun: error: Task launch for \S+ failed on node (\S+):"),
    re.compile(r"ssh: connect to host (\S+) port"),
    re.compile(r"ssh: Could not resolve hostname ([^:\s]+)"),
)
"""Who did not start mpirun's daemon: Open MPI 5, the srun or ssh that starts it (4.1 itself names nobody)."""

_DAEMONS_ENDED = "returned non-zero exit status"
"""``srun returned non-zero exit status (35072) from launching the per-node daemon``: 5.0 does not say on which host."""


class MpirunWords(NamedTuple):
    """Hosts are as the allocation spells them. `killed_process` is a rank and the name of its signal.

    `exited_process` is a rank too; of these two mpirun names the one that it noticed first.
    """

    lost_daemon: str | None = None
    lacks_executable: tuple[str, str] | None = None
    killed_process: tuple[int, str] | None = None
    exited_process: int | None = None
    no_daemon: str | None = None
    daemons_ended: bool = False


def read_words(text: str, hosts: Sequence[str]) -> MpirunWords:
    """What mpirun's output says of hosts of the allocation; words about others are left."""
    killed = _KILLED_PROCESS.search(text)
    exited = _EXITED_PROCESS.search(text)
    lost = (_in_allocation(name, hosts) for name in _LOST_DAEMON.findall(text))
    lacking = ((_in_allocation(name, hosts), path) for path, name in _LACKS_EXECUTABLE.findall(text))
    absent = (_in_allocation(name, hosts) for words in _NO_DAEMON for name in words.findall(text))
    return MpirunWords(
        next(filter(None, lost), None),
        next(((host, path) for host, path in lacking if host), None),
        (int(killed[1]), signal_name(int(killed[2]))) if killed else None,
        int(exited[1]) if exited else None,
        next(filter(None, absent), None),
        _DAEMONS_ENDED in text,
    )


def _in_allocation(name: str, hosts: Sequence[str]) -> str | None:
    """The allocation's name of that host: with or without its domain."""
    short = name.split(".")[0]
    return next((host for host in hosts if host == name or host.split(".")[0] == short), None)
