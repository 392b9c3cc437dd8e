"""Slurm's two compact grammars: node lists and per-node counts.

    SLURM_JOB_NODELIST=rack[1-2]n[01-02],login,gpu[7,9]-ib
    SLURM_TASKS_PER_NODE=8(x2),4

Order is kept as Slurm wrote it: the first host of the list is the one where the batch body runs.
Grammar: https://slurm.schedmd.com/scontrol.html (hostlist expressions) and sbatch's SLURM_TASKS_PER_NODE.
"""

import re
from collections.abc import Iterable, Sequence

from cluster.errors import RequestError

MAX_HOSTS = 200_000
"""More than any Slurm system has; a list that expands further is a typing error, not an allocation."""
LONGEST_HOST = 64
"""Characters of a name, as Linux has it (HOST_NAME_MAX)."""

HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
"""What a host may be called: it stands in hostfiles and among the arguments of ssh, where ``-o…`` is an option."""

_PIECE = re.compile(r"([^\[\],\s]+)|\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)
_COUNT = re.compile(r"(\d{1,9})(?:\(x(\d{1,9})\))?", re.ASCII)


def expand_nodelist(nodelist: str) -> list[str]:
    """Host names of a Slurm node list, in its order.

    >>> expand_nodelist("r[1-2]n[01-02],login")
    ['r1n01', 'r1n02', 'r2n01', 'r2n02', 'login']

    Raises `RequestError` where the text is not a node list or names more than `MAX_HOSTS` hosts.
    """
    if not nodelist.isascii():
        raise _unreadable(nodelist)
    hosts: list[str] = []
    position = 0
    while True:
        names = [""]
        start = position
        while piece := _PIECE.match(nodelist, position):
            literal, ranges = piece.groups()
            parts = [literal] if literal is not None else _expand_ranges(ranges, nodelist)
            if len(names) * len(parts) + len(hosts) > MAX_HOSTS:
                raise RequestError(f"node list {nodelist!r} names more than {MAX_HOSTS:,} hosts")
            if len(names[-1]) + len(parts[-1]) > LONGEST_HOST:
                raise _unreadable(nodelist)
            names = [name + part for name in names for part in parts]
            position = piece.end()
        if position == start:
            raise _unreadable(nodelist)
        if not HOST_NAME.fullmatch(names[0]):  # the others differ by digits alone
            raise _unreadable(nodelist)
        hosts += names
        if position == len(nodelist):
            return hosts
        if nodelist[position] != ",":
            raise _unreadable(nodelist)
        position += 1


def expand_counts(counts: str) -> list[int]:
    """Numbers of a per-node count such as SLURM_TASKS_PER_NODE, one for each node.

    >>> expand_counts("8(x2),4")
    [8, 8, 4]
    """
    numbers: list[int] = []
    for item in counts.split(","):
        match = _COUNT.fullmatch(item)
        repeat = int(match[2] or 1) if match else 0
        if match is None or repeat == 0 or len(numbers) + repeat > MAX_HOSTS:
            raise RequestError(f"cannot read the per-node counts {counts!r}: wanted a form like '8(x2),4'")
        numbers += [int(match[1])] * repeat
    return numbers


def compress_counts(numbers: list[int]) -> str:
    """The inverse of `expand_counts`: ``[8, 8, 4]`` becomes ``'8(x2),4'``."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][0] == number:
            runs[-1] = (number, runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return ",".join(f"{number}(x{length})" if length > 1 else str(number) for number, length in runs)


def compress_nodelist(hosts: Iterable[str]) -> str:
    """The inverse of `expand_nodelist`, order kept: ``['n08', 'n09', 'n10', 'a']`` becomes ``'n[08-10],a'``.

    Only numbers at the end of a name are folded, as Slurm does: mpirun must read it.
    """
    folded: list[tuple[str, list[tuple[str, int]]]] = []  # of each prefix the ranges: the lowest as text, the highest
    for host in hosts:
        number = host[len(host.rstrip("0123456789")) :]
        prefix = host.removesuffix(number)
        if not (folded and folded[-1][0] == prefix and folded[-1][1] and number):
            folded.append((prefix, []))
        ranges = folded[-1][1]
        if ranges and number == f"{ranges[-1][1] + 1:0{len(ranges[-1][0])}d}":
            ranges[-1] = ranges[-1][0], ranges[-1][1] + 1
        elif number:
            ranges.append((number, int(number)))
    return ",".join(prefix + _ranges_text(ranges) for prefix, ranges in folded)


def _ranges_text(ranges: Sequence[tuple[str, int]]) -> str:
    text = ",".join(low if int(low) == high else f"{low}-{high:0{len(low)}d}" for low, high in ranges)
    return f"[{text}]" if "," in text or "-" in text else text


def _expand_ranges(ranges: str, nodelist: str) -> list[str]:
    """Contents of one bracket, zero padding kept: ``'1-2,05'`` becomes ``['1', '2', '05']``."""
    parts: list[str] = []
    for item in ranges.split(","):
        match = _RANGE.fullmatch(item)
        if match is None:
            raise _unreadable(nodelist)
        low, high = match[1], match[2] or match[1]
        if int(high) < int(low) or int(high) - int(low) + len(parts) >= MAX_HOSTS:
            raise _unreadable(nodelist)
        parts += [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
    return parts


def _unreadable(nodelist: str) -> RequestError:
    return RequestError(f"cannot read the node list {nodelist!r}: wanted a form like 'n[01-16]' or 'a1,b[2-3]-ib'")
