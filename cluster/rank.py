"""One rank: check that it stands where the plan says, run the program, and leave a record of how it ended.

mpirun starts ``python -m cluster.rank PLAN -- PROGRAM…`` once per rank. The process that mpirun sees stays small
and only watches; a child runs the program, in the program's own interpreter (see `cluster.program_main`). So every
end is recorded at first hand, also one that the program cannot report itself: a signal, an early ``_exit(0)``.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cluster.allocation import Allocation, RankPlace
from cluster.environment import default_omp_threads, rank_environment, simulated_gpus
from cluster.errors import LAUNCHER, REQUEUE
from cluster.machine import die_with_parent, is_this_host, visible_gpus
from cluster.records import warning_file, write_record
from cluster.verdict import is_victim

PROGRAM_MAIN = Path(__file__).with_name("program_main.py")
LOOK_EVERY = 0.05
"""Seconds between two looks at the program."""
LOOK_FOR_WARNINGS_EVERY = 1.0
"""Seconds between two looks for a warning that mpirun did not pass on."""
GRACE_FOR_THE_GUILTY = 1.0
"""Seconds that a rank whose peer has gone stays, so that mpirun does not kill that peer before its own record."""

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
_FORWARDED_SIGNALS = (*WARNINGS, signal.SIGTERM, signal.SIGINT)
_PYTHON = re.compile(r"python(3(\.\d+)?)?")


def main(arguments: Sequence[str]) -> int:
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
    plan_path, _, *program = arguments
    try:
        plan = json.loads(Path(plan_path).read_text())
    except OSError as error:
        print(
            f"error: {socket.gethostname()} cannot read {plan_path} ({error.strerror}): "
            "the run directory must lie on a file system that all nodes share",
            file=sys.stderr,
        )
        return LAUNCHER
    allocation = Allocation.from_json(plan)
    rank, size, local_rank = identity(os.environ)
    attempt_dir = Path(plan["attempt_dir"])
    facts: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid()}
    if problem := mismatch(allocation, rank, size, local_rank, visible_gpus(os.environ), is_this_host):
        print(f"error: rank {rank} on {facts['host']} {problem}", file=sys.stderr)
        write_record(attempt_dir, rank, "failed", {**facts, **_end("mismatch", LAUNCHER, problem)})
        return LAUNCHER
    place = allocation.place(rank)
    host = allocation.hosts[place.node]
    os.environ.update(rank_environment(plan, allocation, place))
    os.environ.setdefault("OMP_NUM_THREADS", str(default_omp_threads(host)))
    if allocation.source == "local" and host.gpus:
        visible = simulated_gpus(visible_gpus(os.environ) or [], place, host)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
    facts["gpu"] = gpu_name(place, visible_gpus(os.environ))
    _redirect_output(plan["log_dir"], rank)
    write_record(attempt_dir, rank, "started", facts)

    def record_exception(told: Mapping[str, Any]) -> None:
        raised = {**_end("exception", 1, told["detail"]), "time_ns": told["time_ns"]}
        write_record(attempt_dir, rank, "failed", {**facts, **raised})

    def warnings() -> list[int]:
        return [number for number in WARNINGS if warning_file(attempt_dir, number).exists()]

    outcome, status, detail = watch(program, record_exception, warnings)
    end = _end(outcome, status, detail)
    if is_victim(end):
        time.sleep(GRACE_FOR_THE_GUILTY)
    if outcome != "exception":
        state = outcome if outcome in ("complete", "saved") else "failed"
        write_record(attempt_dir, rank, state, {**facts, **end})
    return 0 if outcome == "saved" else status  # mpirun would kill the ranks that are still saving


def identity(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """Rank, world size and local rank as Open MPI or Hydra (MPICH) told this process."""
    if "OMPI_COMM_WORLD_RANK" in environ:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    else:
        names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
    rank, size, local_rank = (int(environ[name]) for name in names)
    return rank, size, local_rank


def mismatch(
    allocation: Allocation, rank: int, size: int, local_rank: int, visible: list[str] | None, is_here: Any
) -> str | None:
    """What is wrong with this rank's place by the plan, worded to follow its name; None where nothing is.

    `visible` are the GPUs this process can see (None: nothing restricts them and none was found);
    ``is_here(name)`` tells whether a host name means this machine.
    """
    if size != allocation.world_size:
        return f"is in a world of {size}, the plan wants {allocation.world_size} ranks"
    place = allocation.place(rank)
    if allocation.source == "local":
        return None
    if not is_here(place.host):
        return f"should be on {place.host} by the plan"
    if local_rank != place.local_rank:
        return f"has local rank {local_rank}, the plan wants {place.local_rank}"
    if place.gpu is not None and place.gpu >= len(visible or []):
        seen = f"{len(visible or [])} GPU{'' if len(visible or []) == 1 else 's'}"
        return (
            f"sees {seen}, the plan gives it GPU {place.gpu} of "
            f"{allocation.hosts[place.node].gpus}: ask Slurm with --gpus-per-node (not --gpus-per-task)"
        )
    return None


def gpu_name(place: RankPlace, visible: list[str] | None) -> str | None:
    """The GPU of this rank as the driver knows it (an index or a UUID)."""
    if place.gpu is None or not visible:
        return None
    return visible[place.gpu]


def watch(
    program: Sequence[str], on_exception: Callable[[Mapping[str, Any]], None], warnings: Callable[[], list[int]]
) -> tuple[str, int, str]:
    """Run the program in a child and wait: how it ended, the exit status for mpirun, and the detail.

    Ends are 'complete', 'saved' (status 75), 'exception' (detail: the traceback), 'exit' (any other status),
    'signal' (detail: its name) and 'incomplete' (status 0, but the program left before its end). `on_exception` is
    called as soon as the program raises, which may be long before its threads let it end. `warnings` names signals
    that are meant for every rank; one that has not come through mpirun is passed on all the same.
    """
    reader, writer = os.pipe()
    command = observed_command(program, writer)
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED_SIGNALS)
    child = os.fork()
    if child == 0:
        _become(command or program, writer)
    os.close(writer)
    passed_on: set[int] = set()

    def pass_on(number: int, _frame: object = None) -> None:
        passed_on.add(number)
        os.kill(child, number)

    for number in _FORWARDED_SIGNALS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED_SIGNALS)
    os.set_blocking(reader, False)
    said, ended, wait_status = b"", 0, 0
    told: Mapping[str, Any] | None = None
    look_for_warnings_at = time.monotonic() + LOOK_FOR_WARNINGS_EVERY
    while not ended:
        ended, wait_status = os.waitpid(child, os.WNOHANG)  # before the pipe is read: its last words are then in it
        said += _read_all(reader)
        if told is None and (told := _as_message(said)) and told["outcome"] == "exception":
            on_exception(told)
        if not ended and time.monotonic() > look_for_warnings_at:
            look_for_warnings_at += LOOK_FOR_WARNINGS_EVERY
            for warning in set(warnings()) - passed_on:
                pass_on(warning)
        if not ended:
            time.sleep(LOOK_EVERY)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # worker processes that the program left
    return judge(told, os.waitstatus_to_exitcode(wait_status), command is not None)


def judge(told: Mapping[str, Any] | None, code: int, is_python: bool) -> tuple[str, int, str]:
    """What the end was, from what the program's interpreter `told` and how it left (`code` < 0 is a signal).

    A program that is not Python can say nothing: its status 0 is taken for completion.
    """
    if told is not None and told["outcome"] == "exception":
        return "exception", code if code > 0 else 1, told["detail"]
    if code < 0:
        return "signal", 128 - code, signal.Signals(-code).name
    if code > 0:
        return "saved" if code == REQUEUE else "exit", code, ""
    if told is not None or not is_python:
        return "complete", 0, ""
    return "incomplete", 1, "left with exit status 0 before the program had ended"


def observed_command(program: Sequence[str], descriptor: int) -> list[str] | None:
    """The same Python, flags and program, run by `program_main` which reports to `descriptor`; else None.

    None for what is not Python, and for a Python that reads its program from standard input.
    """
    python, *arguments = program
    if not _PYTHON.fullmatch(os.path.basename(python)):
        return None
    flags: list[str] = []
    while arguments and arguments[0].startswith("-") and arguments[0] not in ("-", "-m", "-c"):
        flags.append(arguments.pop(0))
        if flags[-1] in ("-W", "-X") and arguments:
            flags.append(arguments.pop(0))
    if not arguments or arguments[0] == "-":
        return None
    return [python, *flags, str(PROGRAM_MAIN), str(descriptor), *arguments]


def _become(command: Sequence[str], writer: int) -> NoReturn:
    """In the child: own process group (a signal to the rank arrives once, through its watcher), then the program.

    USR1 and USR2 are ignored until the program handles them: a warning must not kill one that does not know it.
    """
    os.setpgid(0, 0)
    die_with_parent(signal.SIGKILL)
    os.set_inheritable(writer, True)
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED_SIGNALS)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        print(f"error: cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _read_all(descriptor: int) -> bytes:
    """What can be read now. A worker process of the program may hold the other end open for ever."""
    chunks = b""
    try:
        while chunk := os.read(descriptor, 65536):
            chunks += chunk
    except BlockingIOError:
        pass
    return chunks


def _as_message(said: bytes) -> Mapping[str, Any] | None:
    """The program's message once it is whole; the half of one that a kill cut off is none."""
    try:
        message: Mapping[str, Any] = json.loads(said)
    except ValueError:
        return None
    return message


def _redirect_output(log_dir: str, rank: int) -> None:
    """Standard output and error into the rank's own file: mpirun's own per-rank files lose lines (Open MPI 5)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(os.path.join(log_dir, f"rank-{rank}.log"), flags, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _end(outcome: str, status: int, detail: str) -> dict[str, Any]:
    return {"outcome": outcome, "status": status, "detail": detail}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
