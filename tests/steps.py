"""A program that makes steps as a trainer does, without torch: its ranks start in a tenth of a second.

The ranks meet at each step, agree on a stop, beat, save and resume. Its "weights" are a chain of hashes over the steps,
so a step that is lost, made twice or made in another order shows in the last one. Built-in faults strike in the first
attempt alone::

    python steps.py --steps 100 --fault exit3@1:20 --fault slow@0:0
"""

import argparse
import ctypes
import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

SAVED = 75


def state_after(steps: int, state: str = "") -> str:
    """The "weights" of an undisturbed run."""
    for step in range(steps):
        state = next_state(state, step)
    return state


def next_state(state: str, step: int) -> str:
    return hashlib.sha256(f"{state} {step}".encode()).hexdigest()


class Heartbeat:
    """Fields as a launcher reads them (docs/environment.md)."""

    def __init__(self) -> None:
        self._file = os.open(os.environ["CLUSTER_HEARTBEAT"], os.O_RDWR)
        self._since = time.monotonic()
        self._seconds = dict.fromkeys(("start", "prepare", "compile", "train", "evaluate", "save"), 0.0)
        self.now: dict[str, Any] = {"phase": "start", "step": 0, "at": "", "resumed_step": 0, "saved_step": None}
        self.now |= {"step_seconds": None, "busy_seconds": 0.0, "saved_train_seconds": 0.0}

    def tell(self, **changes: Any) -> None:
        now = time.monotonic()
        self._seconds[self.now["phase"]] += now - self._since
        self._since = now
        self.now |= {"at": ""} | changes if "phase" in changes else changes
        beat = self.now | {"seconds": self._seconds, "time": time.time()}
        os.pwrite(self._file, json.dumps(beat).encode().ljust(1024), 0)

    @property
    def trained(self) -> float:
        return self._seconds["train"]


class Ranks:
    """All ranks around rank 0; one that has gone ends the others as gloo would."""

    def __init__(self, rank: int, size: int, address: str, port: int) -> None:
        self._peers: list[socket.socket] = []
        if rank == 0:
            with socket.create_server(("", port), backlog=size) as server:
                self._peers = [server.accept()[0] for _ in range(size - 1)]
            return
        deadline = time.monotonic() + 30
        while not self._peers:
            try:
                self._peers = [socket.create_connection((address, port), timeout=5)]
                self._peers[0].settimeout(None)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._follows = True

    def any(self, mine: bool) -> bool:
        """Whether it is so on some rank; waits for all of them."""
        if hasattr(self, "_follows"):
            self._peers[0].sendall(bytes([mine]))
            return bool(_byte(self._peers[0]))
        theirs = [_byte(peer) for peer in self._peers]
        answer = mine or any(theirs)
        for peer in self._peers:
            peer.sendall(bytes([answer]))
        return answer


def _byte(peer: socket.socket) -> int:
    if not (got := peer.recv(1)):
        raise ConnectionResetError("Connection closed by peer")
    return got[0]


class Fault:
    """``WHAT@RANK:STEP``; of ``WHAT,SECONDS@…`` it waits so long after another one has struck."""

    def __init__(self, text: str) -> None:
        what, _, where = text.partition("@")
        self.what, _, seconds = what.partition(",")
        self.seconds = float(seconds or 0)
        rank, _, step = where.partition(":")
        self.rank, self.step = (None if rank == "all" else int(rank)), int(step)

    def strikes(self, rank: int, step: int) -> bool:
        return self.rank in (None, rank) and self.step == step and os.environ["CLUSTER_ATTEMPT"] == "1"

    def announce(self) -> None:
        """Leave word of the time, for the one who counts the seconds to the verdict."""
        if self.seconds:
            while not list(Path(os.environ["CLUSTER_RUN_DIR"]).glob("struck-*")):
                time.sleep(0.005)
            time.sleep(self.seconds)
        (Path(os.environ["CLUSTER_RUN_DIR"]) / f"struck-{os.environ['RANK']}").write_text(str(time.time()))

    def strike(self) -> None:
        self.announce()
        match self.what:
            case "exception":
                raise ValueError("a fault of the program")
            case "nan":
                raise FloatingPointError("the loss is not finite")
            case "memory":
                raise MemoryError
            case "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "abort":
                os.abort()
            case "exit3":
                sys.exit(3)
            case "exit0":
                os._exit(0)
            case "loop":
                while True:
                    pass
            case "gil":
                # PyDLL keeps the lock that CDLL lets go; a signal does not end this read, as it would a sleep.
                ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--step-seconds", type=float, default=0.02)
    parser.add_argument("--start-seconds", type=float, default=0.0)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--save-seconds", type=float, default=0.0)
    parser.add_argument("--stop-seconds", type=float, default=0.0, help="that the save of a requested stop takes")
    parser.add_argument("--save-bytes", type=int, default=0)
    parser.add_argument("--slow-rank", type=int)
    parser.add_argument("--fault", type=Fault, action="append", default=[])
    options = parser.parse_args()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: asked.append(number))

    beat = Heartbeat()
    beat.tell()
    time.sleep(options.start_seconds)
    ranks = Ranks(rank, size, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    run_dir = Path(os.environ["CLUSTER_RUN_DIR"])
    checkpoint = run_dir / "checkpoints/state.json"
    checkpoint.parent.mkdir(exist_ok=True)
    done, state = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, "")
    beat.tell(phase="prepare", step=done, resumed_step=done, saved_step=done or None)
    ranks.any(False)  # nobody may save before all have read

    def save(step: int, seconds: float) -> None:
        if rank == 0:
            beat.tell(phase="save")
            aside = checkpoint.with_suffix(".aside")
            with aside.open("w") as file:
                json.dump([step, state], file)
                file.write(" " * options.save_bytes)
                file.flush()
                os.fsync(file.fileno())
            time.sleep(seconds)
            aside.rename(checkpoint)
        beat.tell(phase="train", saved_step=step, saved_train_seconds=beat.trained)

    beat.tell(phase="train")
    for step in range(done, options.steps):
        began = time.monotonic()
        beat.tell(at="forward")
        for fault in options.fault:
            if fault.strikes(rank, step):
                fault.strike()
        time.sleep(options.step_seconds * (4 if rank == options.slow_rank else 1))
        busy = time.monotonic() - began
        beat.tell(at="agree")
        stop = ranks.any(bool(asked))
        state = next_state(state, step)
        seconds = time.monotonic() - began
        beat.tell(step=step + 1, step_seconds=seconds, busy_seconds=beat.now["busy_seconds"] + busy)
        if stop or (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            save(step + 1, options.stop_seconds if stop else options.save_seconds)
        if stop and step + 1 < options.steps:
            ranks.any(False)  # all leave after the save
            print(f"saved step {step + 1}", flush=True)
            return SAVED
    ranks.any(False)
    if rank == 0:
        summary = {"steps": options.steps, "weights_sha256": state}
        (run_dir / "summary.json").write_text(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
