"""`--notify`: a webhook is told of start, fault, requeue and end, and nothing of it can disturb the run."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RequestError
from cluster.notice import FAULT, START, Notices, Webhook, notice, read_webhook
from cluster.run_file import read_run
from cluster.sequel import END, REQUEUE
from conftest import ROOT
from stand_ins import stand_ins

FAILS_ONCE = "import os, sys; new = not os.path.exists(sys.argv[1]); open(sys.argv[1], 'w'); sys.exit(5 if new else 0)"


class Hook(ThreadingHTTPServer):
    """A webhook on this machine that keeps what it is told, with its headers."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = status
        self.told: list[tuple[dict[str, Any], dict[str, str]]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answer(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.told.append((body, dict(self.headers)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    yield server
    server.shutdown()


def address_file(folder: Path, url: str, *headers: str) -> Path:
    path = folder / "webhook"
    path.write_text("\n".join([url, *headers]) + "\n")
    path.chmod(0o600)
    return path


def launch(
    tmp_path: Path, file: Path, *program: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    where = ["--cluster", "local", "--ranks-per-node", "1", "--experiment-name", "a", "--output-dir", str(tmp_path)]
    command = [sys.executable, "-m", "cluster.launch", *where, *options, "--notify", str(file), "--", *program]
    environ = {**os.environ, "PATH": f"{ROOT / '.mpi/openmpi-5.0.11/bin'}:{os.environ['PATH']}"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ)


def test_start_fault_and_end_are_told_in_their_order_with_the_headers_of_the_file(tmp_path: Path, hook: Hook) -> None:
    file = address_file(tmp_path, f"http://127.0.0.1:{hook.server_port}/secret", "Authorization: Bearer abc")
    done = launch(tmp_path, file, "python", "-c", FAILS_ONCE, str(tmp_path / "mark"), options=("--restarts", "1"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert [body["event"] for body, _ in hook.told] == [START, FAULT, START, END]
    assert {headers["Authorization"] for _, headers in hook.told} == {"Bearer abc"}
    fault, end = hook.told[1][0], hook.told[3][0]
    assert fault["verdict"]["kind"] == "rank crash"
    assert fault["text"].startswith("a: rank crash, exit status 5, rank 0 on ")
    assert fault["text"].endswith("; launched again")
    assert (end["text"], end["attempt"], end["run_dir"]) == (
        "a: complete, exit status 0: 1 of 1 ranks completed",
        2,
        str(tmp_path / "a"),
    )
    assert "secret" not in done.stdout + done.stderr


def test_an_attempt_whose_mpirun_cannot_be_started_has_its_verdict_and_is_told(tmp_path: Path, hook: Hook) -> None:
    # It says who it is, and is gone when it shall start the ranks.
    stand_ins(tmp_path / "bin", mpirun='echo "mpirun (Open MPI) 4.1.8"; rm "$0"')
    file = address_file(tmp_path, f"http://127.0.0.1:{hook.server_port}/secret")
    done = launch(tmp_path, file, "python", "-c", "", options=("--mpirun", str(tmp_path / "bin/mpirun")))

    assert done.returncode == 70
    assert done.stderr.startswith("error: mpirun cannot be started: ")
    [attempt] = read_run(tmp_path / "a")["attempts"]
    assert (attempt["verdict"]["kind"], attempt["verdict"]["status"]) == ("launcher failed", 70)
    assert attempt["verdict"]["summary"].startswith("mpirun cannot be started: ")
    assert attempt["accounting"]["lost"] == attempt["seconds"]
    assert [body["event"] for body, _ in hook.told] == [START, END]
    assert hook.told[1][0]["verdict"]["kind"] == "launcher failed"


def test_a_webhook_that_refuses_is_told_of_once_and_ends_nothing(tmp_path: Path, hook: Hook) -> None:
    hook.status = 403
    file = address_file(tmp_path, f"http://127.0.0.1:{hook.server_port}/secret")
    done = launch(tmp_path, file, "python", "-c", "pass")

    assert done.returncode == 0
    assert done.stdout.count("the webhook of --notify did not take the notice that the run starts") == 1
    assert done.stdout.splitlines()[-1] == "1 of 1 ranks completed"
    events = [json.loads(line) for line in (tmp_path / "a/events.jsonl").read_text().splitlines()]
    missed = [(event["of"], event["why"]) for event in events if event["event"] == "notice not delivered"]
    assert missed == [(START, "HTTP 403"), (END, "HTTP 403")]
    assert "secret" not in done.stdout + done.stderr


def resets(listener: socket.socket) -> None:
    """Take one notice, and send its sender a reset."""
    with listener.accept()[0] as connection:
        while not connection.recv(1 << 16).endswith(b"}"):
            pass
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def speaks_no_http(listener: socket.socket) -> None:
    """Answer one notice as a mail server does."""
    with listener.accept()[0] as connection:
        connection.sendall(b"220 mail.example ESMTP\r\n")
        while connection.recv(1 << 16):
            pass


@pytest.mark.parametrize(
    ("behaves", "why"),
    [(None, "ConnectionRefusedError"), (resets, "ConnectionResetError"), (speaks_no_http, "BadStatusLine")],
    ids=["nobody listens", "it resets", "it speaks no HTTP"],
)
def test_whatever_is_wrong_with_the_other_end_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], behaves: Callable[[socket.socket], None] | None, why: str
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # taken from here on: nobody else can come to listen there
        if behaves is not None:
            listener.listen()
            threading.Thread(target=behaves, args=(listener,), daemon=True).start()
        notices = Notices(Webhook(f"http://127.0.0.1:{listener.getsockname()[1]}/secret", {}))
        notices.tell(notice(START, tmp_path, 1, "2 nodes", None))
        notices.close()

    [event] = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["of"], event["why"]) == ("notice not delivered", START, why)
    assert capsys.readouterr().out.endswith(f"did not take the notice that the run starts ({why})\n")


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (None, 0, "No such file"),
        ("http://x/y\n", 0o644, "others can read it, and the address in it is a secret: chmod 600"),
        ("x/y\n", 0o600, "wanted an http\\(s\\) address in the first line"),
        ("", 0o600, "wanted an http\\(s\\) address in the first line"),
        ("http://x/y\nBearer abc\n", 0o600, "headers, if any, as 'Name: value'"),
    ],
    ids=["missing", "readable by others", "no address", "empty", "no header"],
)
def test_a_file_that_will_not_do_is_refused(tmp_path: Path, text: str | None, mode: int, words: str) -> None:
    path = tmp_path / "webhook"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(RequestError, match=words):
        read_webhook(str(path))


def test_nothing_is_queued_with_a_file_that_will_not_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.submit", "--cluster", "slurm", "--notify", str(tmp_path / "none")]
    done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (64, "")


def test_a_requeue_is_told_with_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    verdict = {"kind": "node lost", "status": 71, "summary": "the host fell silent", "rank": 2, "host": "n2"}
    told = notice(REQUEUE, Path("/runs/a"), 1, "2 nodes", verdict)
    assert told["text"] == "a (job 7): node lost, exit status 71, rank 2 on n2: the host fell silent; queued again"
    assert (told["job_id"], told["event"]) == ("7", REQUEUE)
