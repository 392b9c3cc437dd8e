"""Which runs there are, and which one is meant: by name, directory, job id, or the newest."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from cluster import slurm
from cluster.errors import RequestError, did_you_mean
from cluster.request_file import REQUEST_FILE, read_request
from cluster.run_file import RUN_FILE, read_run
from cluster.rundir import DEFAULT_OUTPUT_DIR
from cluster.sweep_file import all_sweeps, find_sweep

MARKS = (RUN_FILE, REQUEST_FILE)
"""Either makes a directory a run's: it was launched, or asked for."""
_JOB_ID = re.compile(r"\d+(_\d+)?")


def all_runs(output_dir: Path) -> list[Path]:
    """The run directories below `output_dir`, absolute, the one that changed last first."""
    return [path for _, path in sorted(_runs(output_dir), key=lambda item: (-item[0], item[1]))]


def find_run(given: str | None, output_dir: Path) -> Path:
    """The run directory that is meant, absolute; without a name the newest. Raises `RequestError` if there is none."""
    if given is None:
        runs = all_runs(output_dir)
        if not runs:
            raise RequestError(f"no run in {output_dir.absolute()}: name a run directory, or give --output-dir")
        return runs[0]
    for candidate in (Path(given), output_dir / given):
        if is_run(candidate):
            return candidate.absolute()
    if _JOB_ID.fullmatch(given) and (run_dir := _run_of_job(given, output_dir)):
        return run_dir
    if find_sweep(given, output_dir):
        raise RequestError(f"{given} is a sweep: python -m cluster sweep {given}, or name one of its runs")
    names = [path.name for path in all_runs(output_dir)]
    hint = did_you_mean(given, names, "wanted a directory with run.json, an experiment's name or a job id")
    raise RequestError(f"no run {given}, neither here nor in {output_dir.absolute()}: {hint}")


def is_run(directory: Path) -> bool:
    return any(os.path.exists(directory / mark) for mark in MARKS)


def name_from_here(directory: Path) -> str:
    """The name by which the commands find a run or sweep from this directory, as a shell's word."""
    outputs = Path(DEFAULT_OUTPUT_DIR).absolute()
    return shlex.quote(str(directory.relative_to(outputs) if directory.is_relative_to(outputs) else directory))


def _run_of_job(job_id: str, output_dir: Path) -> Path | None:
    """The run of a job, the latest where several had that number, those of sweeps too. Of an array's element (``12_3``)
    Slurm is asked for the number of its own by which its run may know it."""
    job_ids = [job_id]
    if "_" in job_id:
        job_ids += re.findall(r"\bJobId=(\d+)", slurm.job_detail(job_id, slurm.SOON) or "")
    for run_dir in [run_dir for parent in (output_dir, *all_sweeps(output_dir)) for run_dir in all_runs(parent)]:
        request = read_request(run_dir)
        if request and request.job_id in job_ids:
            return run_dir
        try:
            attempts = read_run(run_dir)["attempts"]
        except (OSError, ValueError):
            continue
        if any(attempt.get("job_id") in job_ids for attempt in attempts):
            return run_dir
    return None


def _runs(output_dir: Path) -> Iterator[tuple[float, Path]]:
    try:
        entries = list(os.scandir(output_dir.absolute()))
    except OSError:
        return
    for entry in entries:
        times = []
        for mark in MARKS:
            try:
                times.append(os.stat(f"{entry.path}/{mark}").st_mtime)
            except OSError:
                pass
        if times:
            yield max(times), Path(entry.path)
