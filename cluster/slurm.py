"""Slurm's commands, asked and told: jobs, queue, accounting, nodes, controller."""

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cluster.errors import MayBeQueued
from cluster.machine import printed_by

SECONDS = 20.0
"""Longest wait for one answer; a busy controller answers late, a dead one never."""
SOON = 5.0
"""The same where a job is about to be killed: its verdict must be out before."""
CONTROLLER_BACK_WITHIN = 300.0
"""Longest wait for a controller that does not answer at all, such as while it is restarted."""
ASK_AGAIN_EVERY = 5.0

_FREE_TEXT = re.compile(
    r"(?<=JobName=).*|^ *(?:Comment|AdminComment|Command|WorkDir|Std(?:Err|In|Out)|MailUser|Features)=.*", re.MULTILINE
)


def job_detail(job_id: str, seconds: float = SECONDS) -> str | None:
    """``scontrol show job -d``, or None where scontrol is missing or does not answer within that time."""
    return printed_by(["scontrol", "show", "job", "-d", job_id], seconds)


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
    return printed_by(["squeue", "--noheader", "--states=all", "--format=%A|%T|%r|%S|%P|%Q|%F|%K"], SOON, environ)


def accounted(job_ids: Sequence[str]) -> str | None:
    """What accounting has of those jobs: ``15|state|start|partition|12_3`` lines, with both ids of an array's element;
    None where there is no accounting."""
    return printed_by(["sacct", "-nPX", "-j", ",".join(job_ids), "-o", "JobIDRaw,State,Start,Partition,JobID"], SOON)


def how_it_ended(job_id: str) -> str | None:
    """State and exit code of a job by accounting: ``CANCELLED by 0|0:15``, one line for each of its starts."""
    return printed_by(["sacct", "-nPX", "-j", job_id, "-o", "State,ExitCode"], SECONDS)


def submit(script: str, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Queue a batch script in that environment: the job's id, and what sbatch says where it refuses.

    Raises `MayBeQueued` where it says nothing in time.
    """
    import subprocess

    try:
        answer = subprocess.run(
            ["sbatch", "--parsable"], input=script, env=environ, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise MayBeQueued(
            f"sbatch has not answered for {SECONDS:.0f} s, and Slurm may have the job: look by squeue --me, and "
            "scancel it before you submit again"
        ) from None
    except OSError as error:
        return "", f"sbatch cannot be started ({error})"
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
    return printed_by(["scontrol", "write", "batch_script", job_id, "-"], SOON)


def cancel(job_id: str) -> str | None:
    """Take a job out of the queue, or end it; what scancel says against it."""
    return tell(["scancel", job_id])


def configuration() -> str | None:
    """What the site has set; None where the controller does not say."""
    return printed_by(["scontrol", "show", "config"], SECONDS)


def max_array_size() -> int | None:
    """How many elements an array may have (their indexes begin at 0); None where the controller does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", configuration() or "", re.MULTILINE)
    return int(found[1]) if found else None


def nodes_out_of_service() -> bool:
    """Whether some node is down or drained: then ``--test-only`` also refuses what could start once it is back."""
    return bool(printed_by(["sinfo", "--noheader", "--states=down,drain,fail,maint,unk", "--format=%n"], SECONDS))


def wait_for_controller(give_up: Callable[[], bool]) -> None:
    """Return once the controller answers, after `CONTROLLER_BACK_WITHIN`, or when there is no more reason to wait.

    mpirun starts its daemons by srun, which fails at once where the controller is away.
    """
    deadline = time.monotonic() + CONTROLLER_BACK_WITHIN
    while not controller_answers() and not give_up() and time.monotonic() < deadline:
        time.sleep(1.0)


def controller_answers() -> bool:
    """Whether this host can reach Slurm's controller, or the one that stands in for it."""
    return " is UP" in (printed_by(["scontrol", "ping"], SECONDS) or "")


def restarts(detail: str) -> int:
    """How often Slurm has queued the job again, by ``scontrol show job``."""
    return int(facts_of(detail, "Restarts").get("Restarts", 0))


def down_hosts(hosts: Sequence[str]) -> list[str]:
    """Those of the hosts that Slurm itself calls down."""
    answer = printed_by(["sinfo", "--noheader", "--Node", f"--nodes={','.join(hosts)}", "--format=%N %t"], SOON) or ""
    return list(dict.fromkeys(line.split()[0] for line in answer.splitlines() if " down" in line))


def seconds_of(stamp: str) -> float | None:
    """Slurm's local ``2026-01-31T12:00:00`` as seconds since 1970; None for None, Unknown, N/A."""
    try:
        return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def tell(command: Sequence[str]) -> str | None:
    """Have a command of Slurm's do something: what it says against it, None where it did it."""
    import subprocess

    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Unable to contact slurm controller ({error})"
    return None if answer.returncode == 0 else " ".join(answer.stderr.split()) or "no reason given"


def is_down(words: str) -> bool:
    """Whether that refusal only means that the controller does not answer now."""
    return any(text in words for text in ("Unable to contact slurm controller", "Unexpected message"))
