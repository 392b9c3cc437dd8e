"""What is requested: nodes, GPUs, ranks and Slurm's options, validated, and rendered to one batch script.

`sbatch/gpt2_mpi.sh` makes the same request by hand; a test holds the two together.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cluster.allocation import Allocation, Host
from cluster.errors import RequestError

DEFAULT_NODES = 2
DEFAULT_GPUS_PER_NODE = 8
DEFAULT_TIME = "04:00:00"

WARNING_SIGNAL = "B:USR1@120"
"""USR1 to the batch body 120 s before the end: without ``B:`` it would kill Open MPI 5's daemons instead."""

PREPARATION_SHARES = ("partition", "account", "qos", "reservation", "exclude", "mail-type", "mail-user")
"""What the job that prepares the data takes over from the training job's options."""

_OPTION_NAME = re.compile(r"[a-z][a-z0-9-]*")


class ResourcePlan(NamedTuple):
    """A request to Slurm. `gpus_per_node` is on each node (sbatch's own ``--gpus`` is the whole job's).

    `spare_nodes` are asked for beside them, to take the place of nodes that are lost. `options` are further sbatch
    options by their long names, without dashes; an empty value is a flag.
    """

    nodes: int = DEFAULT_NODES
    gpus_per_node: int = DEFAULT_GPUS_PER_NODE
    ranks_per_node: int | None = None
    options: Mapping[str, str] = MappingProxyType({})
    spare_nodes: int = 0

    @property
    def ranks_on_each_node(self) -> int:
        """One rank a GPU, unless the request says otherwise; one rank where no GPU is asked for."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def hours(self) -> float | None:
        """The job's time limit; None where it has none, or Slurm's own word for it is not understood."""
        return hours(self.options.get("time") or DEFAULT_TIME)

    def expected_allocation(self) -> Allocation:
        """What Slurm is expected to grant, under stand-in host names."""
        width = len(str(self.nodes))
        cpus = self.ranks_on_each_node * int(self.options.get("cpus-per-task") or 1)
        names = (f"node{number:0{width}d}" for number in range(1, self.nodes + 1))
        return Allocation(
            "slurm", tuple(Host(name, self.ranks_on_each_node, self.gpus_per_node, cpus) for name in names)
        )

    def sbatch_options(self, log: str) -> dict[str, str]:
        """All options of the batch script; those that the user gave come last and win."""
        options = {
            "nodes": str(self.nodes + self.spare_nodes),
            "ntasks-per-node": str(self.ranks_on_each_node),
            "time": DEFAULT_TIME,
            "output": log,
            "open-mode": "append",
            "requeue": "",
            "signal": WARNING_SIGNAL,
        }
        if self.gpus_per_node:
            options["gpus-per-node"] = str(self.gpus_per_node)
        if self.spare_nodes:
            options["no-kill"] = ""  # the job outlives a lost node, and goes on with a spare one
        return {**options, **self.options}

    def preparation_options(self, name: str, log: str, own: Mapping[str, str]) -> dict[str, str]:
        """Options of the job that goes before: one task on one node, without GPUs, with as many CPUs as the training
        asks for on a node. `own` are those that the user gave for it; they come last and win."""
        cpus = self.ranks_on_each_node * int(self.options.get("cpus-per-task") or 1)
        shared = {option: self.options[option] for option in PREPARATION_SHARES if option in self.options}
        options = {
            "job-name": name,
            "nodes": "1",
            "ntasks": "1",
            "cpus-per-task": str(cpus),
            "time": DEFAULT_TIME,
            "output": log,
        }
        return {**options, **shared, **own}


def hours(limit: str) -> float | None:
    """Of sbatch's ``--time``: ``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S``; None for ``UNLIMITED``."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if found is None:
        return None
    days, *fields = found.groups()
    first, second, third = (int(field or 0) for field in fields)
    if days is not None or fields[2] is not None:
        return 24 * int(days or 0) + first + second / 60 + third / 3600
    return first / 60 + second / 3600


def log_pattern(directory: Path, name: str) -> str:
    """The file of that name (``%x-%j.log``) in a directory whose own name means nothing to Slurm."""
    return str(directory).replace("%", "%%") + f"/{name}"


def after(job_id: str, options: Mapping[str, str]) -> dict[str, str]:
    """These options of a job, which then waits for another to succeed, and is dropped where that one does not."""
    dependency = ",".join(filter(None, [options.get("dependency"), f"afterok:{job_id}"]))
    return {**options, "dependency": dependency, "kill-on-invalid-dep": "yes"}


def check_sbatch_options(options: Mapping[str, str]) -> Mapping[str, str]:
    """The options themselves; `RequestError` where a name or value would break out of the script's header."""
    for name, value in options.items():
        if not _OPTION_NAME.fullmatch(name):
            raise RequestError(f"sbatch option {name!r}: wanted a long name without dashes, such as reservation")
        if not value.isprintable():
            raise RequestError(f"sbatch option --{name}: {value!r} has a line break or control character")
        if name == "job-name" and re.search(r"[\s/]", value):
            raise RequestError(f"sbatch option --job-name: {value!r} has a space or slash, and is to name files")
    return options


def header_value(value: str) -> str:
    """A value as sbatch reads it in the header, whose quotes are not the shell's: a backslash counts within them too.

    Raises `RequestError` for a line break or control character: the rest would be a line of its own.
    """
    if not value.isprintable():
        raise RequestError(f"{value!r} has a line break or control character: sbatch takes none in its options")
    if value == shlex.quote(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def batch_script(
    options: Mapping[str, str],
    setup: Path | None,
    command: str,
    variables: Mapping[str, str] = MappingProxyType({"SUBMITIT_EXECUTOR": "slurm"}),
) -> str:
    """The batch script: header, the site's set-up file where there is one, and one command that replaces bash.

    With ``exec`` the warning signal reaches the launcher itself and its exit status is the job's.
    """
    header = [f"#SBATCH --{name}" + (f"={header_value(value)}" if value else "") for name, value in options.items()]
    site = [f"source {shlex.quote(str(setup))}"] if setup else []
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(["#!/bin/bash", *header, "", *site, *exports, f"exec {command}", ""])
