"""One rank: check that it stands where the plan says, run the program, and leave a record of how it ended.

mpirun starts ``python -m cluster.rank PLAN -- PROGRAM…`` once per rank. The process that mpirun sees stays small
and only watches; a child, forked before anything heavy is imported, runs the program. So every end is recorded at
first hand, also one that the program cannot report itself: a signal, an early ``_exit(0)``.
"""

import atexit
import json
import os
import re
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cluster.allocation import Allocation, RankPlace
from cluster.environment import default_omp_threads, rank_environment, simulated_gpus
from cluster.errors import LAUNCHER, REQUEUE
from cluster.machine import die_with_parent, is_this_host, visible_gpus
from cluster.records import write_record
from cluster.runfile import write_json

PIPE_BYTES = 65536
"""What a pipe holds without a reader (pipe(7)): the child's last words must fit, nobody reads before it is gone."""
LONGEST_DETAIL = 12_000
"""Characters of a traceback that are kept, from its end; escaped in JSON they still fit the pipe."""
_FORWARDED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
_PYTHON = re.compile(r"python(3(\.\d+)?)?")


def main(arguments: Sequence[str]) -> int:
    plan_path, _, *program = arguments
    die_with_parent(signal.SIGKILL)
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
        print(f"error: {problem}", file=sys.stderr)
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
    outcome, status, detail = watch(program)
    state = outcome if outcome in ("complete", "saved") else "failed"
    write_record(attempt_dir, rank, state, {**facts, **_end(outcome, status, detail)})
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
    """One sentence on the first way in which this rank does not stand where the plan says, else None.

    `visible` are the GPUs this process can see (None: nothing restricts them and none was found);
    ``is_here(name)`` tells whether a host name means this machine.
    """
    here = socket.gethostname()
    if size != allocation.world_size:
        return f"rank {rank} on {here} is in a world of {size}, the plan wants {allocation.world_size} ranks"
    place = allocation.place(rank)
    if allocation.source == "local":
        return None
    if not is_here(place.host):
        return f"rank {rank} runs on {here}, the plan wants it on {place.host}"
    if local_rank != place.local_rank:
        return f"rank {rank} on {here} has local rank {local_rank}, the plan wants {place.local_rank}"
    if place.gpu is not None and place.gpu >= len(visible or []):
        seen = f"{len(visible or [])} GPU{'' if len(visible or []) == 1 else 's'}"
        return (
            f"rank {rank} on {here} sees {seen}, the plan gives it GPU {place.gpu} of "
            f"{allocation.hosts[place.node].gpus}: ask Slurm with --gpus-per-node (not --gpus-per-task)"
        )
    return None


def gpu_name(place: RankPlace, visible: list[str] | None) -> str | None:
    """The GPU of this rank as the driver knows it (an index or a UUID)."""
    if place.gpu is None or not visible:
        return None
    return visible[place.gpu]


def watch(program: Sequence[str]) -> tuple[str, int, str]:
    """Run the program in a child and wait: how it ended, the exit status for mpirun, and the detail.

    Ends are 'complete', 'saved' (status 75), 'exception' (detail: the traceback), 'exit' (any other status),
    'signal' (detail: its name) and 'incomplete' (status 0, but the program left before its end).
    """
    script = as_python(program)
    reader, writer = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED_SIGNALS)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_program(script, program, writer)
    os.close(writer)
    for number in _FORWARDED_SIGNALS:
        signal.signal(number, lambda number, _frame: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED_SIGNALS)
    _, wait_status = os.waitpid(child, 0)
    os.set_blocking(reader, False)  # a worker process of the program may still hold the other end open
    try:
        said = os.read(reader, PIPE_BYTES)
    except BlockingIOError:
        said = b""
    return judge(json.loads(said) if said else None, os.waitstatus_to_exitcode(wait_status), script is not None)


def judge(said: Mapping[str, Any] | None, code: int, is_python: bool) -> tuple[str, int, str]:
    """What the end was, from what the child `said` and how it left (`code` < 0 is a signal).

    A program that is not Python can say nothing: its status 0 is taken for completion.
    """
    if code < 0:
        return "signal", 128 - code, signal.Signals(-code).name
    if said is not None and said["outcome"] == "exception":
        return "exception", code or 1, said["detail"]
    if code > 0:
        return "saved" if code == REQUEUE else "exit", code, ""
    if said is not None or not is_python:
        return "complete", 0, ""
    return "incomplete", 1, "left with exit status 0 before the program had ended"


def as_python(program: Sequence[str]) -> list[str] | None:
    """``[script.py, …]`` or ``[-m, module, …]`` where the program is this Python's, else None (run it as it is)."""
    command, *arguments = program
    same = os.path.realpath(command) == os.path.realpath(sys.executable) or _PYTHON.fullmatch(command)
    while arguments and arguments[0] == "-u":
        arguments = arguments[1:]
    if not same or not arguments or (arguments[0].startswith("-") and arguments[0] != "-m"):
        return None
    return arguments


def _become_program(script: list[str] | None, program: Sequence[str], writer: int) -> NoReturn:
    """In the child: own process group (a signal to the rank arrives once, through its watcher), then the program."""
    os.setpgid(0, 0)
    die_with_parent(signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED_SIGNALS)
    if script is None:
        try:
            os.execvp(program[0], list(program))
        except OSError as error:
            print(f"error: cannot run {program[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    status = 0
    said = {"outcome": "complete", "detail": ""}
    try:
        _run_python(script)
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException as error:
        error.__traceback__ = _program_part(error.__traceback__)
        detail = "".join(traceback.format_exception(error))[-LONGEST_DETAIL:]
        print(detail, end="", file=sys.stderr)
        _write_error_file(error, detail)
        status, said = 1, {"outcome": "exception", "detail": detail}
    _leave(status, said, writer)


def _leave(status: int, said: Mapping[str, str], writer: int) -> NoReturn:
    """End as Python does up to the point where it would tear itself down: threads, atexit, streams.

    The tear-down is left out because native threads of torch sometimes crash in it (``terminate called without an
    active exception``), long after the program has done its work; it frees only what the kernel frees anyway.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.write(writer, json.dumps(said).encode())
    os._exit(status)


def _run_python(script: list[str]) -> None:
    """Run it the way ``python script.py`` and ``python -m module`` do, in this process."""
    if script[0] == "-m":
        sys.argv = script[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(script[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = script
        sys.path[0] = os.path.dirname(os.path.abspath(script[0]))
        runpy.run_path(script[0], run_name="__main__")


def _program_part(trace: Any) -> Any:
    """The traceback without the frames of this module and of runpy, which say nothing to the user."""
    inner = trace
    while inner and inner.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>"):
        inner = inner.tb_next
    return inner or trace


def _write_error_file(error: BaseException, detail: str) -> None:
    """TORCHELASTIC_ERROR_FILE in the form of torch's `record`, unless the program has written it itself."""
    path = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
    if not path.exists():
        extra = {"py_callstack": detail, "timestamp": str(int(time.time()))}
        write_json(path, {"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": extra}})


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
