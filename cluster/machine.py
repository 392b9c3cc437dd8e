"""This machine: which host names mean it, which GPUs a process sees, who dies with whom, and for want of memory."""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SIOCGIFADDR = 0x8915
"""netdevice(7)"""


def is_this_host(name: str) -> bool:
    """Whether a host name means this machine: its Slurm name, its own name, or one of its addresses."""
    import socket

    own = socket.gethostname()
    if name in (os.environ.get("SLURMD_NODENAME"), own) or name.split(".")[0] == own.split(".")[0]:
        return True
    try:
        family, kind, _, _, address = socket.getaddrinfo(name, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)  # only an address of this machine can be bound
    except OSError:
        return False
    return True


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that a program started here would see."""
    for variable in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if variable in environ:
            return [gpu for gpu in environ[variable].split(",") if gpu and gpu not in ("-1", "NoDevFiles")]
    devices = sorted(int(p.name[6:]) for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit())
    return [str(device) for device in devices]


def printed_by(command: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None) -> str | None:
    """What a program prints; None where it is missing, fails or does not end in time."""
    import subprocess

    try:
        answer = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def die_with_parent(signal_number: int) -> None:
    """Get this signal when the parent is gone, so that whatever is killed leaves nothing behind (prctl(2))."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Become the parent of whatever this process's descendants leave behind (prctl(2)), so that it can be found."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def children(pid: int) -> list[int]:
    """The processes that this one has started, as far as the kernel tells."""
    found: list[int] = []
    with suppress(OSError):  # it has ended meanwhile
        for of_task in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # only this task
                found += map(int, of_task.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    return [process for child in children(pid) for process in (child, *descendants(child))]


def handles_signal(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal now: SigCgt of proc(5), bit N - 1 for signal N."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)
    except (OSError, ValueError, IndexError):
        return False


def process_state(pid: int) -> str:
    """The kernel's letter for its state (proc(5)): R runs, S sleeps, D waits for a disk, T is stopped; empty: gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def signal_name(number: int) -> str:
    """``SIGKILL``; real-time signals have only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory: in this control group, and on the whole machine."""
    total = 0
    for counters in (_memory_events, lambda: Path("/proc/vmstat")):
        try:
            lines = counters().read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
        except (OSError, ValueError):
            pass  # control groups of version 1, or none
    return total


def _memory_events() -> Path:
    group = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
    return Path(f"/sys/fs/cgroup{group}/memory.events")


def interface_address(name: str) -> str:
    """IPv4 address of a network interface. Raises OSError where it has none."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", os.fsencode(name[:15])))
    return socket.inet_ntoa(answer[20:24])
