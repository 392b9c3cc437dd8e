"""Queue the own job again, away from the hosts that it has lost, so that it can still start."""

import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import slurm
from cluster.machine import printed_by
from cluster.nodelist import expand_nodelist
from cluster.verdict import NODE_LOST


def requeue(job_id: str, restart_count: int, nodes: int, lost: Sequence[str] = ()) -> str | None:
    """Queue this job (or array element) again, away from the hosts that it has lost; why not, where it cannot be.

    Slurm then ends the present run. Its SIGTERM reaches every process of the job, this one and the scontrol that has
    the rest to do, so it is ignored from here on. Only a job that is no longer running takes an ExcNodeList, hence
    the order. A controller that is down for a while is waited for; meanwhile the job may have been cancelled, or
    queued again by Slurm itself, and must not be touched then.

    Args:
        job_id, restart_count: the job, and how often Slurm had queued it again when it started.
        nodes: how many it needs. Slurm's word for that is wrong (NumNodes=1) as long as the job is COMPLETING.
        lost: hosts, the last one last.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + slurm.CONTROLLER_BACK_WITHIN
    words: str | None = "Slurm's controller does not answer"
    while words and time.monotonic() < deadline:
        detail = slurm.job_detail(job_id)
        if detail is None:
            pass
        elif slurm.restarts(detail) > restart_count:
            words = None  # by Slurm, or by our own request whose answer was lost
        elif not may_requeue(detail):
            return "it was cancelled"
        else:
            words = slurm.tell(["scontrol", "requeue", job_id])
            if words and not slurm.is_down(words):
                return words
        if words:
            time.sleep(slurm.ASK_AGAIN_EVERY)
    if lost and not words:
        return _exclude(job_id, nodes, lost)
    return words


def _exclude(job_id: str, nodes: int, lost: Sequence[str]) -> str | None:
    """Keep a queued job from the hosts that it has lost; why not, where it cannot be."""
    facts = slurm.facts_of(slurm.job_detail(job_id) or "", "ExcNodeList|Partition")
    present = facts.get("ExcNodeList", "(null)")
    asked = ["sinfo", "--noheader", "--Node", f"--partition={facts.get('Partition')}", "--format=%N %t"]
    states = printed_by(asked, slurm.SECONDS)
    avoided = hosts_to_avoid(
        [] if present == "(null)" else expand_nodelist(present),
        lost,
        [name for name, state in map(str.split, (states or "").splitlines()) if _may_be_used(state)],
        nodes,
    )
    words = slurm.tell(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(avoided)}"])
    return words and f"it was queued again, but not kept from {','.join(avoided)}: {words}"


def hosts_to_avoid(present: Sequence[str], lost: Sequence[str], usable: Sequence[str], needed: int) -> list[str]:
    """The hosts a queued job is to be kept from, so that it can still start.

    Those that it was kept from by its user, and those that it has lost; but where too few would remain, the ones lost
    first are let in again: a host that is really broken is by then out of Slurm's service.

    Args:
        present: its ExcNodeList, which holds hosts lost before besides the user's.
        lost: hosts, the last one last; may repeat.
        usable: hosts of its partition that are in service.
        needed: how many it needs.
    """
    users = [host for host in present if host not in lost]
    avoided = list(dict.fromkeys(reversed(lost)))[::-1]
    while len(set(usable).difference(users, avoided)) < needed:
        let_in = next((host for host in avoided if host in usable), None)
        if let_in is None:
            break
        avoided.remove(let_in)
    return users + avoided


def may_requeue(detail: str) -> bool:
    """Whether the job still runs, or was only ended by its time limit: a cancelled one must stay cancelled."""
    facts = slurm.facts_of(detail, "JobState|Reason")
    return facts.get("JobState") == "RUNNING" or facts.get("Reason") == "TimeLimit"


def _may_be_used(state: str) -> bool:
    """Of a node, by sinfo's short form of its state; `*` is one that does not answer."""
    return not state.endswith("*") and not state.startswith(("down", "drain", "drng", "fail", "maint", "unk"))


def lost_by(job_id: str, attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hosts that this job has lost so far, also before it was queued again."""
    verdicts = [attempt.get("verdict", {}) for attempt in attempts if attempt.get("job_id") == job_id]
    return [verdict["host"] for verdict in verdicts if verdict.get("kind") == NODE_LOST and verdict.get("host")]
