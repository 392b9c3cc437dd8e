"""Run one rank's program in a child, and watch it: every end is recorded at first hand, also one that the program
cannot report itself (a signal, an early ``_exit(0)``), and nothing of it outlives its watcher.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cluster.channel import BEAT_EVERY, FENCE, Wire
from cluster.errors import REQUEUE
from cluster.machine import (
    adopt_orphans,
    descendants,
    die_with_parent,
    handles_signal,
    out_of_memory_kills,
    process_state,
    signal_name,
)
from cluster.program import is_python, split_flags
from cluster.signals import WARNINGS

PROGRAM_MAIN = Path(__file__).with_name("program_main.py")
LOOK_EVERY = 0.05
"""Seconds between two looks at the program."""
GRACE_TO_STOP = 1.0
"""Seconds from SIGTERM to SIGKILL for the program."""
STACKS_AFTER, STACKS_WITHIN = 0.5, 1.5
"""Seconds that a program has to write its stacks, and to begin with it: after that, none are the answer."""
HEARTBEAT_BYTES = 1024
LONGEST_STACKS = 1 << 16
"""Bytes of one answer; the launcher of very many ranks has room for less."""
NO_BEAT: Mapping[str, Any] = {
    "phase": "start", "step": 0, "at": "", "resumed_step": 0, "saved_step": None, "step_seconds": None,
    "busy_seconds": 0.0, "seconds": {}, "saved_train_seconds": 0.0, "time": 0.0,
}  # fmt: skip
"""The fields of a heartbeat, and what one means that does not have them."""

STACK_SIGNAL = signal.SIGRTMIN + 5
"""Makes an observed Python write the stacks of its threads; a program that does not know it ignores it."""
_STOPS = (signal.SIGTERM, signal.SIGINT)
_DAEMONS = frozenset({"orted", "prted", "hydra_pmi_proxy"})


class Ending(NamedTuple):
    """How a program ended: 'complete', 'saved' (status 75), 'exception' (detail: the traceback), 'exit' (any other
    status), 'signal' (detail: its name) or 'incomplete' (status 0, but the program left before its end).

    `error` is the exception's class by its full name; `oom_killed` says that the kernel killed for want of memory here.
    """

    outcome: str
    status: int
    detail: str = ""
    error: str | None = None
    errno: int | None = None
    time_ns: int | None = None
    oom_killed: bool = False


class Watched:
    """The running program of one rank, with what it shows of itself."""

    def __init__(self, program: Sequence[str]) -> None:
        """Start it. It finds CLUSTER_HEARTBEAT, a file in memory that it may write (see docs/environment.md)."""
        self._heartbeat = os.memfd_create("heartbeat")
        os.ftruncate(self._heartbeat, HEARTBEAT_BYTES)
        self._stacks = os.memfd_create("stacks")
        os.environ["CLUSTER_HEARTBEAT"] = f"/proc/{os.getpid()}/fd/{self._heartbeat}"
        self._said, writer = os.pipe()
        command = observed_command(program, writer, f"/proc/{os.getpid()}/fd/{self._stacks}")
        self.is_python = command is not None
        self._oom_kills = out_of_memory_kills()
        adopt_orphans()
        signal.pthread_sigmask(signal.SIG_BLOCK, (*WARNINGS, *_STOPS))
        held, start = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(start)
            _become(command or program, writer, held)
        with contextlib.suppress(OSError):
            # the child does it too: whoever comes first, its group is there to be killed
            os.setpgid(self.pid, self.pid)
        os.close(writer)
        os.set_blocking(self._said, False)
        self._words = b""
        self._beat: Mapping[str, Any] | None = None
        self._guard = _guard(self.pid)
        os.write(start, b"1")
        os.close(start)
        os.close(held)
        self._kill_at: float | None = None
        self._warnings: set[int] = set()

    def warn(self, number: int) -> None:
        """Have the program get this signal as soon as it handles it, which may be long after its start."""
        self._warnings.add(number)

    def deliver_warnings(self) -> None:
        for number in list(self._warnings):
            if handles_signal(self.pid, number):
                self._warnings.discard(number)
                self.signal(number)

    def signal(self, number: int) -> None:
        """Pass a signal on; SIGTERM and SIGINT are followed by SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if number in _STOPS and self._kill_at is None:
            self._kill_at = time.monotonic() + GRACE_TO_STOP

    def kill(self) -> None:
        """End the program and what it started, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float, wires: Sequence[Any] = ()) -> Ending | None:
        """How the program ended, None if it still runs after so long, or when a wire has something to read."""
        select.select([*wires, *([self._said] if self._said >= 0 else [])], [], [], seconds)
        self._forget_orphans()
        ended, status = os.waitpid(self.pid, os.WNOHANG)  # before the pipe is read: its last words are then in it
        self._listen()
        if not ended:
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                self.kill()
            return None
        self.kill()  # worker processes that the program left
        for left in descendants(os.getpid()):
            if left != self._guard:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)  # and those that have left its group
        os.kill(self._guard, signal.SIGKILL)
        os.waitpid(self._guard, 0)
        ending = judge(self.told(), os.waitstatus_to_exitcode(status), self.is_python)
        killed = ending.detail == "SIGKILL" and out_of_memory_kills() > self._oom_kills
        return ending._replace(oom_killed=killed)

    def told(self) -> Mapping[str, Any] | None:
        """The message of the program's interpreter on how it ends, once it is whole."""
        return as_object(self._words)

    def beat(self) -> Mapping[str, Any] | None:
        """The newest heartbeat that is whole, with `NO_BEAT` for what it does not say; None before the first."""
        new = as_object(os.pread(self._heartbeat, HEARTBEAT_BYTES, 0).rstrip(b" \0"))
        if new is not None and is_beat(new):
            self._beat = {**NO_BEAT, **new}
        return self._beat

    def state(self) -> str:
        """The kernel's letter for the program's state."""
        return process_state(self.pid)

    def ask_stacks(self) -> None:
        """Have the program's Python write its stacks, which `stacks` then returns."""
        if self.is_python:
            os.ftruncate(self._stacks, 0)
            self.signal(STACK_SIGNAL)

    def stacks(self) -> str:
        """What it wrote; of very many threads the last ones, the main thread among them."""
        size = os.fstat(self._stacks).st_size
        return os.pread(self._stacks, LONGEST_STACKS, max(0, size - LONGEST_STACKS)).decode(errors="replace")

    def _forget_orphans(self) -> None:
        """Let go of what the program left and this process adopted, once it has ended: nobody else would."""
        own = (self.pid, self._guard)
        while (left := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and left.si_pid not in own:
            os.waitpid(left.si_pid, 0)

    def _listen(self) -> None:
        try:
            while self._said >= 0:
                if not (new := os.read(self._said, 65536)):
                    os.close(self._said)
                    self._said = -1
                self._words += new
        except BlockingIOError:
            pass


def watch(
    watched: Watched, wire: Wire, on_exception: Callable[[Ending], None], beat_every: float = BEAT_EVERY
) -> Ending:
    """Await the program's end, telling the launcher how it fares and doing what the launcher says.

    `on_exception` is called as soon as the program raises, which may be long before its threads let it end. Without
    a launcher there is no attempt: the program is stopped.
    """
    stopping: list[int] = []

    def warn(number: int, _frame: object) -> None:
        watched.warn(number)

    def stop(number: int, _frame: object) -> None:
        watched.signal(number)
        stopping.append(number)

    for number in WARNINGS:
        signal.signal(number, warn)
    for number in _STOPS:
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*WARNINGS, *_STOPS))
    looked_at = heard_at = time.monotonic()
    beat_at, asked_at, room, raised = 0.0, None, 0, False
    while True:
        ending = watched.wait(LOOK_EVERY, [] if wire.closed else [wire.socket])
        now = time.monotonic()
        if now - looked_at > FENCE / 2:
            heard_at = now  # this process itself was stopped: the launcher has its time anew
        looked_at = now
        if not raised and (told := watched.told()) and told["outcome"] == "exception":
            raised = True
            on_exception(judge(told, 1, True))
        if ending is not None:
            wire.send({"beat": watched.beat()})
            return ending
        for message in [] if wire.closed else wire.receive():
            heard_at = now
            match message.get("do"):
                case "warn":
                    watched.warn(message["signal"])
                case "stacks":
                    watched.ask_stacks()
                    asked_at, room = now, message["letters"]
                case "stop":
                    watched.signal(signal.SIGTERM)
        watched.deliver_warnings()
        if stopping:  # said at once: whoever sent it may kill this process before it can say how the program ended
            wire.send({"stopping": stopping.pop()})
        if wire.closed or now - heard_at > FENCE:
            watched.kill()
            if not wire.closed:
                kill_daemon(os.getppid())
        elif asked_at is not None and now - asked_at > (STACKS_AFTER if watched.stacks() else STACKS_WITHIN):
            asked_at = None
            wire.send({"stacks": shorten(watched.stacks(), room), "state": watched.state()})
        elif now - beat_at > beat_every and not wire.waits:
            beat_at = now
            wire.send({"beat": watched.beat(), "state": watched.state()})


def shorten(stacks: str, longest: int) -> str:
    """At most so many letters of stacks: their end, where the main thread is, and of that its innermost calls."""
    main_thread = stacks.rfind("\n", 0, max(0, stacks.rfind("hread 0x"))) + 1
    begin = max(0, min(main_thread, len(stacks) - longest))
    end = begin + longest
    return stacks[begin:] if end >= len(stacks) else stacks[begin : end - 1] + "…"


def kill_daemon(parent: int) -> None:
    """End mpirun's daemon on a host that was cut off: it would wait there for an mpirun that has gone."""
    try:
        if Path(f"/proc/{parent}/comm").read_text().strip() in _DAEMONS:
            os.kill(parent, signal.SIGKILL)
    except OSError:
        pass  # it has gone already


def judge(told: Mapping[str, Any] | None, code: int, is_python: bool) -> Ending:
    """What the end was, from what the program's interpreter `told` and how it left (`code` < 0 is a signal).

    A program that is not Python can say nothing: its status 0 is taken for completion.
    """
    if told is not None and told["outcome"] == "exception":
        return Ending(
            "exception", code if code > 0 else 1, told["detail"], told["error"], told["errno"], told["time_ns"]
        )
    if code < 0:
        return Ending("signal", 128 - code, signal_name(-code))
    if code > 0:
        return Ending("saved" if code == REQUEUE else "exit", code)
    if told is not None or not is_python:
        return Ending("complete", 0)
    return Ending("incomplete", 1, "left with exit status 0 before the program had ended")


def observed_command(program: Sequence[str], descriptor: int, stacks: str) -> list[str] | None:
    """The same Python, flags and program, run by `program_main` which reports to `descriptor`; else None.

    None for what is not Python, and for a Python that reads its program from standard input.
    """
    python, *arguments = program
    if not is_python(python):
        return None
    flags, rest = split_flags(arguments)
    if not rest or rest[0] == "-":
        return None
    return [python, *flags, str(PROGRAM_MAIN), str(descriptor), stacks, *rest]


def as_object(text: bytes) -> Mapping[str, Any] | None:
    """A JSON object once it is whole; the half of one is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_beat(value: Mapping[str, Any]) -> bool:
    """Whether a program's heartbeat has numbers where numbers are meant; a script of one's own may write anything."""
    numbers = ("step", "resumed_step", "busy_seconds", "saved_train_seconds", "time")
    seconds = value.get("seconds", {})
    return (
        isinstance(seconds, dict)
        and all(isinstance(value.get(name, 0), int | float) for name in numbers)
        and all(isinstance(value.get(name), int | float | None) for name in ("saved_step", "step_seconds"))
        and all(isinstance(value.get(name, ""), str) for name in ("phase", "at"))
        and all(isinstance(one, int | float) for one in seconds.values())
    )


def _become(command: Sequence[str], writer: int, held: int) -> NoReturn:
    """In the child: own process group (a signal to the rank arrives once, through its watcher), then the program, once
    `held` says that it is guarded; its end says that the watcher has gone before.

    What the program does not handle itself it ignores: a warning or a question must not kill one that does not know it.
    """
    os.setpgid(0, 0)
    die_with_parent(signal.SIGKILL)
    if not os.read(held, 1):
        os._exit(1)
    os.set_inheritable(writer, True)
    for number in (*WARNINGS, STACK_SIGNAL):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*WARNINGS, *_STOPS))
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        print(f"error: cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _guard(group: int) -> int:
    """A process that outlives this one, if that is killed, just long enough to kill the program's whole group.

    The kernel kills the program with its watcher, but not the worker processes that the program has started.
    """
    reader, _writer = os.pipe()  # the writer stays open as long as this process lives
    guard = os.fork()
    if guard:
        os.close(reader)
        return guard
    os.setsid()
    for number in (*WARNINGS, *_STOPS, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor != reader:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    os.read(reader, 1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    os._exit(0)
