"""Slurm's commands, asked and told: job details, states, requeue. The only module that runs them."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cluster.nodelist import expand_nodelist

SECONDS = 20.0
"""Longest wait for one answer; a busy controller answers late, a dead one never."""
SOON = 5.0
"""The same where a job is about to be killed: its verdict must be out before."""
CONTROLLER_BACK_WITHIN = 300.0
"""Longest wait for a controller that does not answer at all, such as while it is restarted."""
ASK_AGAIN_EVERY = 5.0
NEAR_THE_END = 900.0
"""Seconds before a job's end in which a warning is for that end; sites warn minutes before, not hours."""

ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)
"""Job states that do not change any more (squeue(1), JOB STATE CODES); PREEMPTED does where the job requeues."""


_FREE_TEXT = re.compile(
    r"(?<=JobName=).*|^ *(?:Comment|AdminComment|Command|WorkDir|Std(?:Err|In|Out)|MailUser|Features)=.*", re.MULTILINE
)


class JobState(NamedTuple):
    """A job as Slurm tells it. `exit_code` is the batch body's status, `signal` what ended it (0: nothing did)."""

    state: str
    reason: str = ""
    exit_code: int = 0
    signal: int = 0

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def exit_status(self) -> int:
        """The status to return for the job: its own, 128 + signal, and never 0 unless it COMPLETED."""
        if self.state == "COMPLETED":
            return self.exit_code
        return self.exit_code or (128 + self.signal if self.signal else 1)


def job_detail(job_id: str, seconds: float = SECONDS) -> str | None:
    """``scontrol show job -d``, or None where scontrol is missing or does not answer within that time."""
    return _ask(["scontrol", "show", "job", "-d", job_id], seconds)


def facts_of(detail: str, names: str) -> dict[str, str]:
    """Values by name, of ``scontrol show job``; `names` are separated by ``|``.

    The lines on which users' own words stand are left out: a job may be called ``a JobState=COMPLETED``.
    """
    own = re.sub(_FREE_TEXT, "", detail)
    return dict(re.findall(rf"\b({names})=(\S+)", own))


def record_of(detail: str, job_id: str) -> str:
    """That job's own part of ``scontrol show job``.

    Of an array's number all elements are shown, one after another: it is also that of the last one. Of ``12_3`` there
    is one part: the element's own, or while it is pending that of all that are.
    """
    if "_" in job_id:
        return detail
    records = re.split(r"\n\s*\n", detail)
    return next((record for record in records if re.match(rf"\s*JobId={job_id}\b", record)), "")


def job_state(job_id: str) -> JobState | None:
    """State from the controller, else (the job is too old for it) from accounting; None where neither knows."""
    if record := record_of(job_detail(job_id) or "", job_id):
        return parse_job_detail(record)
    rows = _ask(["sacct", "-nPX", "-j", job_id, "-o", "State,ExitCode"])
    return parse_accounting(rows) if rows else None


def parse_job_detail(detail: str) -> JobState:
    """From ``JobState=FAILED Reason=NonZeroExitCode … ExitCode=3:0``."""
    facts = facts_of(detail, "JobState|Reason|ExitCode")
    code, _, number = facts.get("ExitCode", "0:0").partition(":")
    return JobState(facts["JobState"], facts.get("Reason", ""), int(code), int(number or 0))


def parse_accounting(rows: str) -> JobState:
    """From sacct's ``CANCELLED by 0|0:15``; after a requeue the last row counts."""
    state, exit_code = rows.strip().splitlines()[-1].split("|")
    code, _, number = exit_code.partition(":")
    return JobState(state.split()[0], "", int(code), int(number or 0))


def refusal(script: str) -> str | None:
    """What ``sbatch --test-only`` has against the batch script, in its own words; None where it would accept it.

    sbatch itself queues some requests that can never start (more nodes than the partition has).
    """
    answer = test_only(script)
    return answer.words if answer and not answer.accepted else None


class TestOnly(NamedTuple):
    """What ``sbatch --test-only`` says of a batch script."""

    accepted: bool
    words: str


def test_only(script: str) -> TestOnly | None:
    """``Job 7 to start at … using 4 processors on nodes n[1-2] in partition main``, or why it never could.

    None where there is no sbatch, or it does not answer.
    """
    import subprocess

    try:
        answer = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return TestOnly(answer.returncode == 0, " ".join(answer.stderr.split()))


def queue() -> str | None:
    """All jobs that the controller knows, those of others too: ``id|state|reason|start|partition|priority|array|index``
    lines. The index is ``N/A``, an element's, or those of all elements that wait (``2,4-9%2``).

    The start of a pending job is Slurm's estimate. None where squeue is missing or does not answer.
    """
    environ = {**os.environ, "SLURM_BITSTR_LEN": "0"}  # else only the first indexes are shown
    return _ask(["squeue", "--noheader", "--states=all", "--format=%A|%T|%r|%S|%P|%Q|%F|%K"], SOON, environ)


def accounted(job_ids: Sequence[str]) -> str | None:
    """What accounting has of those jobs: ``15|state|start|partition|12_3`` lines, with both ids of an array's element;
    None where there is no accounting."""
    return _ask(["sacct", "-nPX", "-j", ",".join(job_ids), "-o", "JobIDRaw,State,Start,Partition,JobID"], SOON)


def submit(script: str, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Queue a batch script in that environment: the job's id, and what sbatch says where it refuses."""
    import subprocess

    try:
        answer = subprocess.run(
            ["sbatch", "--parsable"], input=script, env=environ, capture_output=True, text=True, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"sbatch did not answer ({error})"
    return answer.stdout.strip().partition(";")[0], None if answer.returncode == 0 else " ".join(answer.stderr.split())


def step_command(job_id: str, hosts: Sequence[str], shell: bool = False) -> list[str]:
    """The beginning of an srun command: one process on each of these hosts of a running job, beside what runs there.

    For a shell: at a terminal it has one of its own, else it reads its commands from the standard input.
    """
    terminal = ["--input=none"] if not shell else ["--pty"] if sys.stdin.isatty() else []
    where = [f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1", f"--nodelist={','.join(hosts)}"]
    return ["srun", f"--jobid={job_id}", "--overlap", *where, *terminal]


def batch_script_of(job_id: str) -> str | None:
    """The batch script that a job was submitted with; Slurm gives it to the job's user alone."""
    return _ask(["scontrol", "write", "batch_script", job_id, "-"], SOON)


def cancel(job_id: str) -> str | None:
    """Take a job out of the queue, or end it; what scancel says against it."""
    return _refusal(["scancel", job_id])


def max_array_size() -> int | None:
    """How many elements an array may have (their indexes begin at 0); None where the controller does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]) or "", re.MULTILINE)
    return int(found[1]) if found else None


def nodes_out_of_service() -> bool:
    """Whether some node is down or drained: then ``--test-only`` also refuses what could start once it is back."""
    return bool(_ask(["sinfo", "--noheader", "--states=down,drain,fail,maint,unk", "--format=%n"]))


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
    deadline = time.monotonic() + CONTROLLER_BACK_WITHIN
    words: str | None = "Slurm's controller does not answer"
    while words and time.monotonic() < deadline:
        detail = job_detail(job_id)
        if detail is None:
            pass
        elif restarts(detail) > restart_count:
            words = None  # by Slurm, or by our own request whose answer was lost
        elif not may_requeue(detail):
            return "it was cancelled"
        else:
            words = _refusal(["scontrol", "requeue", job_id])
            if words and not is_down(words):
                return words
        if words:
            time.sleep(ASK_AGAIN_EVERY)
    if lost and not words:
        return _exclude(job_id, nodes, lost)
    return words


def _exclude(job_id: str, nodes: int, lost: Sequence[str]) -> str | None:
    """Keep a queued job from the hosts that it has lost; why not, where it cannot be."""
    facts = facts_of(job_detail(job_id) or "", "ExcNodeList|Partition")
    present = facts.get("ExcNodeList", "(null)")
    states = _ask(["sinfo", "--noheader", "--Node", f"--partition={facts.get('Partition')}", "--format=%N %t"])
    avoided = hosts_to_avoid(
        [] if present == "(null)" else expand_nodelist(present),
        lost,
        [name for name, state in map(str.split, (states or "").splitlines()) if _may_be_used(state)],
        nodes,
    )
    words = _refusal(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(avoided)}"])
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


def _may_be_used(state: str) -> bool:
    """Of a node, by sinfo's short form of its state; `*` is one that does not answer."""
    return not state.endswith("*") and not state.startswith(("down", "drain", "drng", "fail", "maint", "unk"))


def may_requeue(detail: str) -> bool:
    """Whether the job still runs, or was only ended by its time limit: a cancelled one must stay cancelled."""
    facts = facts_of(detail, "JobState|Reason")
    return facts.get("JobState") == "RUNNING" or facts.get("Reason") == "TimeLimit"


def wait_for_controller(give_up: Callable[[], bool]) -> None:
    """Return once the controller answers, after `CONTROLLER_BACK_WITHIN`, or when there is no more reason to wait.

    mpirun starts its daemons by srun, which fails at once where the controller is away.
    """
    deadline = time.monotonic() + CONTROLLER_BACK_WITHIN
    while not controller_answers() and not give_up() and time.monotonic() < deadline:
        time.sleep(1.0)


def controller_answers() -> bool:
    """Whether this host can reach Slurm's controller, or the one that stands in for it."""
    return " is UP" in (_ask(["scontrol", "ping"], SECONDS) or "")


def why_warned(detail: str | None, now: float) -> str:
    """Why USR1 came, by ``scontrol show job`` at that moment: 'preempted', 'time limit', or just 'signal'."""
    facts = facts_of(detail or "", "PreemptTime|EndTime")
    if facts.get("PreemptTime", "None") != "None":
        return "preempted"
    end = seconds_of(facts.get("EndTime", ""))
    return "time limit" if end is not None and end - now < NEAR_THE_END else "signal"


def why_stopped(detail: str | None, restart_count: int) -> str:
    """Why TERM came, by ``scontrol show job`` at that moment: 'time limit', 'preempted' or 'cancelled'.

    A preempted job has been queued again by then: it counts one restart more than we know of.
    """
    facts = facts_of(detail or "", "JobState|Reason")
    if facts.get("Reason") == "TimeLimit":
        return "time limit"
    requeued = restarts(detail or "") > restart_count
    return "preempted" if requeued or facts.get("JobState") == "PREEMPTED" else "cancelled"


def restarts(detail: str) -> int:
    """How often Slurm has queued the job again, by ``scontrol show job``."""
    found = re.search(r"\bRestarts=(\d+)", detail)
    return int(found[1]) if found else 0


def down_hosts(hosts: Sequence[str]) -> list[str]:
    """Those of the hosts that Slurm itself calls down."""
    answer = _ask(["sinfo", "--noheader", "--Node", f"--nodes={','.join(hosts)}", "--format=%N %t"], SOON) or ""
    return list(dict.fromkeys(line.split()[0] for line in answer.splitlines() if " down" in line))


def queued_at(detail: str | None) -> float | None:
    """When the job began to wait in the queue (seconds since 1970): its EligibleTime."""
    found = re.search(r"\bEligibleTime=(\S+)", detail or "")
    return seconds_of(found[1]) if found else None


def seconds_of(stamp: str) -> float | None:
    """Slurm's local ``2026-01-31T12:00:00`` as seconds since 1970; None for None, Unknown, N/A."""
    try:
        return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def in_batch_body(environ: Mapping[str, str]) -> bool:
    """Whether this is a batch job's own process (Slurm names the node there), not the shell of salloc."""
    return "SLURM_JOB_ID" in environ and "SLURMD_NODENAME" in environ


def job_name(environ: Mapping[str, str]) -> str | None:
    """The batch job's name; an array element adds its index. The shell of salloc has none worth keeping."""
    if not in_batch_body(environ):
        return None
    index = environ.get("SLURM_ARRAY_TASK_ID")
    return environ["SLURM_JOB_NAME"] + (f"-{index}" if index else "")


def job_facts(environ: Mapping[str, str]) -> dict[str, str]:
    """Slurm's names for an attempt, none away from Slurm."""
    names = {"job_id": "SLURM_JOB_ID", "restart_count": "SLURM_RESTART_COUNT"}
    return {key: environ[name] for key, name in names.items() if name in environ}


def restart_count(environ: Mapping[str, str]) -> int:
    """How often Slurm has started this job again."""
    return int(environ.get("SLURM_RESTART_COUNT") or 0)


def own_job_id(environ: Mapping[str, str]) -> str:
    """The id by which Slurm's commands know this job alone: an array element must not name its whole array."""
    if element := environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{element}"
    return environ["SLURM_JOB_ID"]


def _refusal(command: Sequence[str]) -> str | None:
    """What a command of Slurm's says against it; None where it did it."""
    import subprocess

    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Unable to contact slurm controller ({error})"
    return None if answer.returncode == 0 else " ".join(answer.stderr.split()) or "no reason given"


def is_down(words: str) -> bool:
    """Whether that refusal only means that the controller does not answer now."""
    return any(text in words for text in ("Unable to contact slurm controller", "Unexpected message"))


def _ask(command: Sequence[str], seconds: float = SECONDS, environ: Mapping[str, str] | None = None) -> str | None:
    import subprocess

    try:
        answer = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
