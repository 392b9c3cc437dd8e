"""Which rank's failure began it, and of what kind it is. Pure: records in, answers out.

Blame lands on victims unless one looks closely: a rank that fails may close its connections seconds before its own
traceback is out, so time alone would name whoever notices first.
"""

import errno
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

MESSAGES_KEPT = 1 << 17
"""With what was found in them: a verdict asks several times of each rank, and there may be a hundred thousand."""

_PEER_GONE = re.compile(
    r"connection (reset|closed|refused|was likely closed)|broken pipe|socket (unexpectedly )?closed|socket timeout"
    r"|peererror|ncclremoteerror|remote process exited|nccl communicator was aborted|application timeout caused pair"
    r"|timed out (waiting|after)|wait timeout|failed to (recv|send), (got|sent) 0 bytes"
    r"|(recvvalue|recvvaluewithtimeout|sendbytes|recvbytes) failed|connectfullmesh failed|store->get\("
    r"|connection was likely|socketprogress|failed to connect/validate to host|socket has timed out"
    r"|software caused connection abort|timed out in monitoredbarrier|received errors while waiting"
    r"|caused by a remote worker|watchdog caught collective operation timeout|process group watchdog thread terminated"
)
"""How gloo, NCCL, the c10d store (torch 2.11 to 2.13) and our trainer say that another rank has gone or is silent.
In small letters: a search that takes no notice of them takes five times as long."""

_COLLECTIVE_TIMEOUT = re.compile(
    r"timed out waiting \d+ms for (recv|send)|application timeout caused pair|wait timeout after|socket timeout"
    r"|caught collective operation timeout|timed out in monitoredbarrier|waitforinput|socket \S+ timed out after"
    r"|timed out after \d+ seconds waiting for clients"
)
"""The same where nobody has gone: they waited in a collective operation, and one did not come."""

_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|HIP out of memory|DefaultCPUAllocator|Cannot allocate memory"
    r"|std::bad_alloc|out of shared memory|Cuda failure '?out of memory",
    re.IGNORECASE,
)
_OUT_OF_MEMORY_ERRORS = frozenset({"MemoryError", "OutOfMemoryError"})

_STORAGE_ERRNOS = frozenset(
    [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ESHUTDOWN]
)
"""Full, over quota, read-only, broken, or gone under us; the last two are a Lustre client's that was evicted.

Not EMFILE and ENFILE: too many open files are the program's, not the disk's.
"""
_STORAGE = re.compile(r"PytorchStream(Writer|Reader) failed|unexpected pos \d+ vs \d+|iostream error")
_OS_ERROR = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")

_NAMES_A_RANK = re.compile(r"\bon rank (\d+)")


def first_failure(failed: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The record that began it: the earliest that is not plainly the consequence of another rank's end."""
    return min(failed, key=lambda record: (_innocence(record), record["time_ns"]), default=None)


def _innocence(record: Mapping[str, Any]) -> int:
    if stopped_by_mpirun(record):
        return 2
    return 1 if is_victim(record) else 0


def is_victim(record: Mapping[str, Any]) -> bool:
    """Whether a rank only followed another: stopped by mpirun, or its error is that a peer has gone or is silent.

    NCCL's watchdog aborts the process; such a record tells by the end of its output (`output`), where it has that.
    """
    if stopped_by_mpirun(record):
        return True
    if record["outcome"] == "exception":
        return _says_that_peer_is_gone(final_message(record["detail"]))
    aborted = (record["outcome"], record["detail"]) == ("signal", "SIGABRT")
    return aborted and _says_that_peer_is_gone(record.get("output") or "")


@lru_cache(maxsize=MESSAGES_KEPT)
def _says_that_peer_is_gone(text: str) -> bool:
    return bool(_PEER_GONE.search(text.lower()))


@lru_cache(maxsize=MESSAGES_KEPT)
def _says_that_time_was_out(text: str) -> bool:
    return bool(_COLLECTIVE_TIMEOUT.search(text.lower()))


def stopped_by_mpirun(record: Mapping[str, Any]) -> bool:
    """Whether this is how mpirun ends the other ranks: its SIGTERM says nothing about who began."""
    return (record["outcome"], record["detail"]) == ("signal", "SIGTERM")


def is_collective_timeout(record: Mapping[str, Any]) -> bool:
    """Whether a rank ended because others did not come to a collective operation in time."""
    said = final_message(record["detail"]) if record["outcome"] == "exception" else record.get("output") or ""
    return is_victim(record) and not stopped_by_mpirun(record) and _says_that_time_was_out(said)


def is_out_of_memory(record: Mapping[str, Any]) -> bool:
    """Whether memory ran out: the kernel's killer on the host, or an allocation that failed there or on the GPU."""
    if record["outcome"] == "signal":
        return record["detail"] == "SIGKILL" and bool(record.get("oom_killed"))
    if record["outcome"] != "exception":
        return False
    message = final_message(record["detail"])
    if error_name(record) in _OUT_OF_MEMORY_ERRORS or _OUT_OF_MEMORY.search(message):
        return True
    return error_number(record) == errno.ENOMEM or bool(record.get("oom_killed") and "Killed" in message)


def is_storage(record: Mapping[str, Any]) -> bool:
    """Whether the file system failed: the trainer's own word for it, an error number, or torch's writer."""
    if record["outcome"] != "exception":
        return False
    return (
        error_name(record) in ("StorageError", "TakenOverError")
        or error_number(record) in _STORAGE_ERRNOS
        or bool(_STORAGE.search(final_message(record["detail"])))
    )


def error_name(record: Mapping[str, Any]) -> str:
    """Class of the exception without its module: as the record has it, else from the traceback's last words."""
    name: str = record.get("error") or final_message(record["detail"]).partition(":")[0]
    return name.rpartition(".")[2].strip()


def error_number(record: Mapping[str, Any]) -> int | None:
    """`errno` of the exception: as the record has it, else from Python's or Rust's words."""
    if record.get("errno") is not None:
        return int(record["errno"])
    found = _OS_ERROR.search(final_message(record["detail"]))
    return int(found[1] or found[2]) if found else None


@lru_cache(maxsize=MESSAGES_KEPT)
def final_message(detail: str) -> str:
    """The exception's own words, all its lines: what follows the last frame of the traceback.

    C++ errors of torch carry a backtrace of many lines in their message, so the last line alone would say nothing.
    """
    lines = detail.rstrip().splitlines()
    start = 0
    for number, line in enumerate(lines):
        if line.startswith(("  File ", "Traceback ")):
            start = number + 1
    while start < len(lines) - 1 and (lines[start].startswith("    ") or not lines[start].strip()):
        start += 1
    return "\n".join(lines[start:])


def rank_in_words(message: str) -> int | None:
    """The rank that an error's message blames (``the loss is not finite at step 7 on rank 3``)."""
    found = _NAMES_A_RANK.search(message)
    return int(found[1]) if found else None
