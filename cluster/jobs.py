"""What Slurm says of jobs: of one, and of those of many runs by squeue once, then by scontrol and sacct.

Any of the three may be missing, not answer, or have forgotten a job.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from cluster import slurm

ENDED = frozenset(
    ["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"]
    + ["OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"]
)
"""Job states that do not change any more (squeue(1), JOB STATE CODES); PREEMPTED does where the job requeues."""

WAITING = frozenset(["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"])
"""States of Slurm in which a job has no nodes (squeue(1), JOB STATE CODES)."""


class Job(NamedTuple):
    """A job. `start` (seconds since 1970) is Slurm's estimate while it is pending. `position` counts from 1, among
    the `waiting` pending jobs of its partition, by priority; None where it does not wait or that is not known.
    `exit_code` is the batch body's status, `signal` what ended it (0: nothing did)."""

    state: str
    reason: str = ""
    start: float | None = None
    partition: str = ""
    priority: int = 0
    position: int | None = None
    waiting: int | None = None
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


class Jobs(NamedTuple):
    """Jobs by id. `answered`: those that are not among them are in no queue; else nobody could be asked."""

    known: dict[str, Job]
    answered: bool


def job_now(job_id: str) -> Job | None:
    """One job, by the controller, else (it is too old for that) by accounting; None where neither knows it."""
    if record := slurm.record_of(slurm.job_detail(job_id) or "", job_id):
        return parse_detail(record)
    rows = slurm.how_it_ended(job_id)
    return parse_end(rows) if rows else None


def look_up(job_ids: Collection[str], unsettled: Iterable[str]) -> Jobs:
    """What Slurm knows of these jobs. Accounting is asked for the `unsettled` ones alone, of which the run directory
    does not say how they ended."""
    if not job_ids:
        return Jobs({}, False)
    text = slurm.queue()
    queued = with_positions(parse_queue(text or ""))
    own = {job_id: job_id for job_id in queued} | own_ids(text or "", job_ids)
    known = {job_id: queued[own[job_id]] for job_id in job_ids if job_id in own}
    left = [job_id for job_id in (unsettled if text is not None else job_ids) if job_id not in known]
    answered = text is not None
    if text is None:
        for job_id in list(left):
            if (detail := slurm.job_detail(job_id, slurm.SOON)) is None:
                break  # scontrol is missing too, or the controller is away, or has forgotten this one
            answered = True
            known[job_id] = parse_detail(slurm.record_of(detail, job_id))
            left.remove(job_id)
    if left and (rows := slurm.accounted(left)) is not None:
        known |= {job_id: job for job_id, job in parse_accounted(rows).items() if job_id in left}
        answered = True
    return Jobs(known, answered)


def parse_queue(text: str) -> dict[str, Job]:
    """From the lines of `slurm.queue`: ``12|PENDING|Resources|2026-01-31T12:00:00|gpu|4294901757|12|N/A``."""
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 8:
            job_id, state, reason, start, partition, priority, _, _ = fields
            number = int(priority) if priority.isdecimal() else 0
            jobs[job_id] = Job(state, reason, slurm.seconds_of(start), partition, number)
    return jobs


def own_ids(text: str, job_ids: Collection[str]) -> dict[str, str]:
    """The ids under which the queue has the array elements (``12_3``) among these: one that has started has a number of
    its own, those that wait share one line."""
    wanted: dict[str, set[int]] = {}
    for array, _, index in (job_id.partition("_") for job_id in job_ids):
        if index.isdecimal():
            wanted.setdefault(array, set()).add(int(index))
    found: dict[str, str] = {}
    for job_id, *_, array, indexes in (line.split("|") for line in text.splitlines() if line.count("|") == 7):
        for item in indexes.partition("%")[0].split(",") if array in wanted else []:
            if span := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", item):
                indices = range(int(span[1]), int(span[2] or span[1]) + 1, int(span[3] or 1))
                found |= {f"{array}_{index}": job_id for index in wanted[array].intersection(indices)}
    return found


def with_positions(jobs: dict[str, Job]) -> dict[str, Job]:
    """Pending jobs with their place among those that wait for one of the same partitions."""
    lines: dict[str, list[str]] = {}
    for job_id, job in sorted(jobs.items(), key=lambda item: (-item[1].priority, _number(item[0]))):
        if job.state == "PENDING":
            for partition in job.partition.split(","):
                lines.setdefault(partition, []).append(job_id)
    places = {
        (partition, job_id): number
        for partition, waiting in lines.items()
        for number, job_id in enumerate(waiting, start=1)
    }

    def placed(job_id: str, job: Job) -> Job:
        if job.state != "PENDING":
            return job
        position, partition = min((places[name, job_id], name) for name in job.partition.split(","))
        return job._replace(position=position, waiting=len(lines[partition]))

    return {job_id: placed(job_id, job) for job_id, job in jobs.items()}


def parse_detail(detail: str) -> Job:
    """From ``scontrol show job``: ``JobState=FAILED Reason=NonZeroExitCode … ExitCode=3:0``."""
    facts = slurm.facts_of(detail, "JobState|Reason|StartTime|Partition|Priority|ExitCode")
    priority = facts.get("Priority", "")
    code, _, number = facts.get("ExitCode", "0:0").partition(":")
    return Job(
        facts.get("JobState", ""),
        facts.get("Reason", ""),
        slurm.seconds_of(facts.get("StartTime", "")),
        facts.get("Partition", ""),
        int(priority) if priority.isdecimal() else 0,
        exit_code=int(code),
        signal=int(number or 0),
    )


def parse_end(rows: str) -> Job:
    """From sacct's ``CANCELLED by 0|0:15``; after a requeue the last row counts."""
    state, exit_code = rows.strip().splitlines()[-1].split("|")
    code, _, number = exit_code.partition(":")
    return Job(state.split()[0], exit_code=int(code), signal=int(number or 0))


def parse_accounted(rows: str) -> dict[str, Job]:
    """From ``15|CANCELLED by 0|2026-01-31T12:00:00|gpu|12_3``, under both ids; after a requeue the last row counts."""
    jobs: dict[str, Job] = {}
    for line in rows.splitlines():
        fields: Sequence[str] = line.split("|")
        if len(fields) == 5 and fields[1]:
            jobs[fields[0]] = jobs[fields[4]] = Job(fields[1].split()[0], "", slurm.seconds_of(fields[2]), fields[3])
    return jobs


def _number(job_id: str) -> int:
    return int(job_id) if job_id.isdecimal() else 0
