"""What a rank's watcher sees of its program, and that nothing outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import channel, machine
from cluster.channel import ALL_STACKS
from cluster.supervise import question_for_stacks
from cluster.watch import LONGEST_STACKS, shorten
from conftest import ROOT
from one_rank import OneRank
from waiting import is_gone, wait_until

BEATS = """
import json, os, time
file = os.open(os.environ["CLUSTER_HEARTBEAT"], os.O_RDWR)
for step in range(3):
    os.pwrite(file, json.dumps({"step": step}).encode().ljust(1024), 0)
open("beaten", "w").close()
time.sleep(600)
"""
NONSENSE = """
import os, sys
from pathlib import Path
from cluster.watch import NO_BEAT, Watched
watched = Watched([sys.executable, "-c", "import time; time.sleep(600)"])
file = Path(os.environ["CLUSTER_HEARTBEAT"])
file.write_bytes(b'{"step": 1}'.ljust(1024))
assert watched.beat() == {**NO_BEAT, "step": 1}
HALF, NO_OBJECT, TEXT, NO_TABLE = b'{"step": 2, "pha', b"[2]", b'{"step": "2"}', b'{"step": 2, "seconds": 3}'
NULL = b'{"step": 2, "resumed_step": null}', b'{"step": 2, "busy_seconds": null}', b'{"step": 2, "time": null}'
for bad in (HALF, NO_OBJECT, TEXT, NO_TABLE, *NULL, b"[" * 1024):
    file.write_bytes(bad.ljust(1024))
    assert watched.beat() == {**NO_BEAT, "step": 1}, bad
watched.kill()
while watched.wait(0.05) is None:
    pass
"""
LEAVES_ORPHANS = """
import subprocess, time
for _ in range(3):
    subprocess.run(["sh", "-c", "sleep 0.1 & echo $! >> pids"])
open("left", "w").close()
time.sleep(600)
"""
KILLED_BEFORE_IT_GUARDS = """
import os, signal, sys
from cluster import watch
def die(group):
    open("child", "w").write(str(group))
    os.kill(os.getpid(), signal.SIGKILL)
watch._guard = die
watch.die_with_parent = lambda number: None  # as if the watcher had died just before the child asked for that
watch.Watched([sys.executable, "-c", "open('ran', 'w')"])
"""
HOLDS_THE_INTERPRETER = """
def spin():
    open("spinning", "w").close()
    (1 << 90_000_000) // ((1 << 45_000_000) + 1)  # minutes of C code that does not let go of the interpreter's lock
spin()
"""
WITH_A_WORKER = """
import os, subprocess, time
worker = subprocess.Popen(["sleep", "600"])
open("worker.new", "w").write(str(worker.pid))
os.rename("worker.new", "worker")
time.sleep(600)
"""


def started(tmp_path: Path, text: str, sign: str) -> OneRank:
    """A rank that watches, and whose program has left its sign in the folder."""
    (tmp_path / "program.py").write_text(f"import os\nos.chdir({str(tmp_path)!r})\n{text}")
    rank = OneRank(tmp_path, [sys.executable, str(tmp_path / "program.py")])
    # Its first beat: from then on it watches, and whatever is to outlive it is there.
    rank.listen_until(lambda: (tmp_path / sign).exists() and any("beat" in message for message in rank.heard))
    return rank


def program_of(rank: OneRank) -> int:
    """The process that runs the program, by its command line among the watcher's children."""
    for child in map(int, Path(f"/proc/{rank.process.pid}/task/{rank.process.pid}/children").read_text().split()):
        if b"program_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    raise AssertionError("no program")


def told(rank: OneRank, key: str) -> list[Any]:
    return [message[key] for message in rank.heard if message.get(key) is not None]


def looks_on(rank: OneRank) -> None:
    """Wait until the watcher has looked at its program once more, and so done what it was told.

    Of two states at most the first was on its way already.
    """
    before = len(told(rank, "state"))
    rank.listen_until(lambda: len(told(rank, "state")) > before + 1)


def test_heartbeats_go_to_the_launcher_with_the_state_of_the_process(tmp_path: Path) -> None:
    rank = started(tmp_path, BEATS, "beaten")

    rank.listen_until(lambda: [beat["step"] for beat in told(rank, "beat")][-1:] == [2])
    os.kill(program_of(rank), signal.SIGSTOP)
    rank.listen_until(lambda: told(rank, "state")[-1:] == ["T"])

    rank.process.kill()
    rank.finish()


def test_what_a_program_leaves_behind_does_not_stay_as_a_zombie(tmp_path: Path) -> None:
    rank = started(tmp_path, LEAVES_ORPHANS, "left")
    left = (tmp_path / "pids").read_text().split()

    rank.listen_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))

    rank.process.kill()
    rank.finish()


def test_half_a_heartbeat_or_nonsense_is_not_taken_for_one() -> None:
    # In a process of its own: it blocks signals, and at its end kills whatever its process has started.
    done = subprocess.run([sys.executable, "-c", NONSENSE], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


def test_stacks_come_also_from_a_program_that_holds_the_interpreter(tmp_path: Path) -> None:
    rank = started(tmp_path, HOLDS_THE_INTERPRETER, "spinning")

    rank.listener.tell(question_for_stacks(2))
    rank.listen_until(lambda: told(rank, "stacks"))

    assert "in spin" in told(rank, "stacks")[0]
    rank.process.kill()
    rank.finish()


def test_a_program_that_is_no_python_survives_the_question_for_stacks(tmp_path: Path) -> None:
    rank = OneRank(tmp_path, ["sh", "-c", f"until [ -e '{tmp_path}/go' ]; do sleep 0.05; done; exit 5"])
    rank.listen_until(lambda: told(rank, "record"))

    rank.listener.tell(question_for_stacks(2))
    rank.listen_until(lambda: told(rank, "stacks"))
    (tmp_path / "go").touch()

    assert rank.finish().returncode == 5
    assert told(rank, "stacks") == [""]


def test_no_answer_is_longer_than_the_launcher_has_room_for(tmp_path: Path) -> None:
    rank = started(tmp_path, BEATS, "beaten")

    rank.listener.tell({"do": "stacks", "letters": 100})
    rank.listen_until(lambda: told(rank, "stacks"))

    [answer] = told(rank, "stacks")
    assert len(answer) == 100
    assert answer.startswith("Current thread 0x")
    assert '  File "' in answer
    rank.process.kill()
    rank.finish()


def test_the_stacks_of_all_ranks_fit_the_launcher_however_many_they_are() -> None:
    for ranks in (1, 2, 1024, 1025, 80_000, 800_000):
        share = question_for_stacks(ranks)["letters"]
        assert min(LONGEST_STACKS, share) * ranks <= ALL_STACKS
        assert (share >= LONGEST_STACKS) == (ranks <= 1024)


OTHER_THREAD = 'Thread 0x00007a (most recent call first):\n  File "pool.py", line 9 in wait\n\n'
MAIN_THREAD = (
    'Current thread 0x00007f (most recent call first):\n  File "in.py", line 1 in f\n  File "out.py", line 2 in g\n'
)


@pytest.mark.parametrize(
    ("longest", "kept"),
    [
        (1000, OTHER_THREAD + MAIN_THREAD),
        (len(MAIN_THREAD) + 10, f" in wait\n\n{MAIN_THREAD}"[-len(MAIN_THREAD) - 10 :]),
        (len(MAIN_THREAD), MAIN_THREAD),
        (77, MAIN_THREAD[:76] + "…"),
    ],
)
def test_of_stacks_that_are_too_long_the_innermost_calls_of_the_main_thread_stay(longest: int, kept: str) -> None:
    assert shorten(OTHER_THREAD + MAIN_THREAD, longest) == kept
    assert len(shorten("no stack at all", 7)) == 7


def test_told_to_stop_the_program_has_a_moment_to_end_and_is_then_killed(tmp_path: Path) -> None:
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('deaf', 'w')\ntime.sleep(600)\n"
    rank = started(tmp_path, deaf, "deaf")

    rank.listener.tell({"do": "stop"})

    assert rank.finish().returncode == 137


def test_a_warning_reaches_the_program(tmp_path: Path) -> None:
    warned = "import signal, sys, time\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\nopen('set', 'w')\n"
    rank = started(tmp_path, warned + "time.sleep(600)\n", "set")

    rank.listener.tell({"do": "warn", "signal": signal.SIGUSR1})
    rank.finish()

    assert told(rank, "record")[-1]["state"] == "saved"


def test_a_warning_waits_until_the_program_handles_it(tmp_path: Path) -> None:
    late = (
        "import signal, sys, time\n"
        "open('up', 'w')\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
        "time.sleep(600)\n"
    )
    rank = started(tmp_path, late, "up")

    rank.listener.tell({"do": "warn", "signal": signal.SIGUSR1})
    looks_on(rank)
    (tmp_path / "go").touch()
    rank.finish()

    assert told(rank, "record")[-1]["state"] == "saved"


def test_a_warning_to_the_watcher_reaches_the_program_once(tmp_path: Path) -> None:
    counts = (
        "import signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('usr1', flush=True))\n"
        "open('set', 'w')\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
    )
    rank = started(tmp_path, counts, "set")

    rank.process.send_signal(signal.SIGUSR1)
    looks_on(rank)
    (tmp_path / "go").touch()

    assert rank.finish().returncode == 0
    assert (tmp_path / "attempt-0001/logs/rank-0.log").read_text() == "usr1\n"


def test_a_program_that_does_not_know_a_warning_survives_it(tmp_path: Path) -> None:
    knows_none = "import time\nopen('up', 'w')\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    rank = started(tmp_path, knows_none, "up")

    rank.process.send_signal(signal.SIGUSR1)
    looks_on(rank)
    (tmp_path / "go").touch()

    assert rank.finish().returncode == 0


def test_a_rank_whose_launcher_is_gone_stops(tmp_path: Path) -> None:
    rank = started(tmp_path, WITH_A_WORKER, "worker")
    program, worker = program_of(rank), int((tmp_path / "worker").read_text())

    rank.listener.close()

    wait_until(lambda: is_gone(program) and is_gone(worker))
    rank.process.wait(60)


def test_a_rank_that_hears_nothing_from_its_launcher_stops_by_itself(tmp_path: Path) -> None:
    rank = started(tmp_path, WITH_A_WORKER, "worker")
    program, heard_last = program_of(rank), time.monotonic()
    rank.listen()

    wait_until(lambda: is_gone(program))  # nothing more is told, and the connection stays open

    assert time.monotonic() - heard_last > channel.FENCE / 2
    rank.finish()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_of_the_program_end_also_when_the_watcher_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    rank = started(tmp_path, WITH_A_WORKER, "worker")
    program, worker = program_of(rank), int((tmp_path / "worker").read_text())

    rank.process.send_signal(number)
    rank.finish()

    wait_until(lambda: is_gone(program) and is_gone(worker))


def test_a_program_whose_watcher_dies_before_it_guards_it_never_begins(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_BEFORE_IT_GUARDS]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: is_gone(int((tmp_path / "child").read_text())))
    assert not (tmp_path / "ran").exists()


def test_what_left_the_programs_process_group_ends_with_it_too(tmp_path: Path) -> None:
    text = WITH_A_WORKER.replace('["sleep", "600"]', '["sleep", "600"], start_new_session=True').replace(
        "time.sleep(600)", "os._exit(0)"
    )
    rank = started(tmp_path, text, "worker")
    rank.finish()

    wait_until(lambda: is_gone(int((tmp_path / "worker").read_text())))


def test_an_exceptions_class_and_errno_are_on_record(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("open('/nowhere/at/all')\n")
    rank = OneRank(tmp_path, [sys.executable, str(tmp_path / "program.py")])

    assert rank.finish().returncode == 1
    end = told(rank, "record")[-1]
    assert (end["error"], end["errno"]) == ("builtins.FileNotFoundError", 2)


def test_a_task_that_ends_hides_no_children_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        (tmp_path / f"{number}-ended/children").mkdir(parents=True)  # cannot be read
    for number in (41, 42):
        (tmp_path / str(number)).mkdir()
        (tmp_path / f"{number}/children").write_text(f"{number} ")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path)

    assert sorted(machine.children(7)) == [41, 42]
