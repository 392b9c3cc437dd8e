"""Values from elsewhere stay values: 10,000 strings that try to break out, through the one door of each place."""

import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hostile import CANARY, strings

from cluster.allocation import Allocation, Host, from_hostfile_text, from_hosts
from cluster.command import launch_command
from cluster.config_file import resolve_arguments
from cluster.environment import forwarded_names
from cluster.errors import COMPLETE, ClusterError, LauncherError, RequestError
from cluster.events import record_event
from cluster.explain import main as explain
from cluster.hostfile import hostfile_text
from cluster.launch import parser as launch_parser
from cluster.logs import main as logs
from cluster.mpirun import HYDRA, OPEN_MPI_4, OPEN_MPI_5, Mpirun, program_of
from cluster.nodelist import expand_nodelist
from cluster.options import environment_pair, run
from cluster.plan import batch_script, check_sbatch_options, log_pattern
from cluster.records import Records, read_records
from cluster.request import parser as submit_parser
from cluster.request_file import read_request, record_request
from cluster.run_file import read_json, write_json
from cluster.rundir import Attempt, check_experiment_name, run_directory
from cluster.slurm import facts_of
from cluster.status import main as status
from cluster.submit import main as submit
from cluster.sweep_file import Element, Sweep, read_sweep, written
from cluster.terminal import plain, plain_bytes, say
from conftest import ROOT, Mpi
from report_runs import make_run
from slurm_lab import SlurmLab
from stand_ins import stand_ins
from training.manifest import MANIFEST, DamagedError, Manifest, Proof, is_file_name, read_manifest, render_manifest
from training.metrics import MetricsFile, read_rows
from training.report.page import render
from training.report.run import read_run as read_reported
from training.whole_file import write_json as write_trainers_json

STRINGS = strings(10_000)
A_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def taken(door: Callable[[str], Any]) -> list[tuple[str, Any]]:
    """What a door lets through, with what it makes of it; all else it refuses by its own error."""
    passed = []
    for text in STRINGS:
        try:
            passed.append((text, door(text)))
        except (ClusterError, ArgumentTypeError):
            continue
    return passed


def as_sbatch_reads(words: str) -> list[str]:
    """The words of a header line by sbatch's own rules: quotes of both kinds, in which a backslash counts too."""
    found, word, quote, signs = [], "", "", iter(words)
    for sign in signs:
        if sign == "\\":
            word += next(signs)
        elif quote:
            quote, word = ("", word) if sign == quote else (quote, word + sign)
        elif sign in "'\"":
            quote = sign
        elif sign == " ":
            found.append(word)
            word = ""
        else:
            word += sign
    assert not quote
    return [*found, word]


def test_an_sbatch_option_stays_one_option_of_one_line() -> None:
    def header(text: str) -> str:
        script = batch_script(check_sbatch_options({"comment": text}), None, "true", variables={})
        [line] = script.splitlines()[1:-2]
        return line

    passed = taken(header)

    assert len(passed) > 1000
    for text, line in passed:
        assert as_sbatch_reads(line.removeprefix("#SBATCH ")) == [f"--comment={text}" if text else "--comment"]


def test_no_part_of_a_batch_script_can_be_broken_by_the_directory_that_it_lies_in() -> None:
    with pytest.raises(RequestError, match="line break or control character"):
        batch_script({"output": "/a\ntouch b/%x.log"}, None, "true")


def test_words_of_a_user_are_no_facts_in_slurms_answer_and_a_directory_none_of_its_signs() -> None:
    for text in STRINGS:
        if text.isprintable():
            detail = f"JobId=7 JobName={text}\n   UserId=you(1) GroupId=you(1)\n   JobState=FAILED\n   Comment={text}\n"
            assert facts_of(detail, "JobState|JobId") == {"JobId": "7", "JobState": "FAILED"}
        assert log_pattern(Path("/", text), "%x-%j.log").replace("%%", "").count("%") == 2


def test_a_shell_gives_back_every_word_of_a_command(tmp_path: Path) -> None:
    words = [text for text in STRINGS if "\0" not in text and text == text.encode(errors="replace").decode()]
    script = tmp_path / "script"
    script.write_text("".join(f"printf '%s\\0' {shlex.join(['x' + word])}\n" for word in words), newline="\n")

    said = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, check=True).stdout

    assert [word[1:] for word in said.decode().split("\0")[:-1]] == words
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("template", ["gpt2_mpi.sh", "smoke_mpi.sh"])
def test_a_template_hands_every_argument_on_as_it_is(template: str, tmp_path: Path) -> None:
    words = [text for text in STRINGS if "\0" not in text and text == text.encode(errors="replace").decode()]
    (tmp_path / "sbatch").mkdir()
    (tmp_path / "sbatch/env.sh").touch()
    stand_ins(tmp_path, python="printf '%s\\0' \"$@\"")
    environ = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python")}

    said = subprocess.run(
        ["bash", ROOT / "sbatch" / template, *words], cwd=tmp_path, env=environ, capture_output=True, check=True
    ).stdout

    assert said.decode().split("\0")[-len(words) - 1 : -1] == words
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("template", ["gpt2_mpi.sh", "smoke_mpi.sh"])
def test_a_template_starts_in_a_directory_of_any_name_by_the_python_that_lies_there(
    template: str, tmp_path: Path
) -> None:
    names = {text for text in STRINGS[:300] if is_file_name(text) and len(os.fsencode(text)) < 256}
    (tmp_path / "python").write_text("#!/bin/sh\npwd -P\n")
    (tmp_path / "python").chmod(0o700)
    for text in names:
        here = tmp_path / "projects" / text
        (here / ".venv/bin").mkdir(parents=True)
        (here / "sbatch").symlink_to(ROOT / "sbatch")
        (here / ".venv/bin/python").symlink_to(tmp_path / "python")

        said = subprocess.run(
            ["bash", here / "sbatch" / template],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(here)},
            capture_output=True,
            check=True,
        )

        assert said.stdout == os.fsencode(here) + b"\n"
    assert len(names) > 100
    assert not list(tmp_path.rglob(CANARY))


@pytest.mark.parametrize("dialect", [OPEN_MPI_5, HYDRA], ids=lambda dialect: dialect.name)
def test_a_host_is_a_name_and_its_line_of_the_hostfile_is_one(dialect: Any) -> None:
    named = [*taken(from_hosts), *taken(from_hostfile_text), *taken(lambda text: from_hosts(f"a{text}:1"))]

    assert named
    for _, allocation in named:
        lines = hostfile_text(allocation, dialect).split("\n")[:-1]
        assert len(lines) == len({host.name for host in allocation.hosts})
        assert all(A_HOST.fullmatch(host.name) for host in allocation.hosts)
    listed = [names for _, names in [*taken(expand_nodelist), *taken(lambda text: expand_nodelist(f"n{text}"))]]
    assert listed
    assert all(A_HOST.fullmatch(name) for names in listed for name in names)


def test_a_plan_that_names_another_kind_of_host_is_not_believed() -> None:
    def named(text: str) -> Allocation:
        return Allocation.from_json({"source": "ssh", "hosts": [[text, 1, None, 0]]})

    with pytest.raises(ClusterError, match="the plan names a host '-oProxyCommand=x'"):
        named("-oProxyCommand=x")
    for text, allocation in taken(named):
        assert [host.name for host in allocation.hosts] == [text]
        assert A_HOST.fullmatch(text)


def test_a_name_stays_below_the_output_directory(tmp_path: Path) -> None:
    of_options = taken(lambda text: run_directory(["x"], f"a{text}", str(tmp_path), None))
    of_jobs = taken(lambda text: run_directory(["x"], None, str(tmp_path), f"a{text}"))

    assert of_options == of_jobs
    for text, run_dir in [*of_options, *((name, tmp_path / name) for name, _ in taken(check_experiment_name))]:
        assert run_dir.name.endswith(text)
        assert (run_dir.parent, run_dir.resolve()) == (tmp_path, run_dir)


def test_a_variable_is_forwarded_by_a_name_that_no_list_of_names_can_be_cut_at() -> None:
    asked = [pair for _, pair in taken(environment_pair)]
    found = forwarded_names({f"HF_{text}": "" for text in STRINGS}, [name for name, _ in asked])

    assert found
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in found)


def test_words_of_the_program_come_last_and_unchanged_in_mpiruns_command(tmp_path: Path) -> None:
    attempt = Attempt(1, tmp_path, tmp_path / "attempt-0001", tmp_path / "logs")
    allocation = Allocation("ssh", (Host("a", 1, None, 0),))
    words = [text for text in STRINGS if "\0" not in text]

    for dialect in (OPEN_MPI_4, OPEN_MPI_5, HYDRA):
        options = launch_parser().parse_options([])
        command = launch_command(options, Mpirun("/mpirun", dialect), allocation, ["p", *words], attempt, {})
        assert program_of(command[-len(words) - 2 :]) == ["--", "p", *words]
        assert ":" not in command
        assert shlex.split(shlex.join(command)) == command


def test_what_no_process_can_be_given_is_refused_in_any_place() -> None:
    parser = submit_parser()
    for text in STRINGS:
        refused = "\0" in text or text != text.encode(errors="replace").decode()
        try:
            assert resolve_arguments(["--nic", f"x{text}", "--", f"x{text}"], parser).resolved[-1] == f"x{text}"
            assert not refused
        except RequestError:
            assert refused


def test_run_files_give_back_what_was_written_one_record_a_line(tmp_path: Path) -> None:
    records = Records(tmp_path / "ranks.jsonl", {})
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for rank, text in enumerate(STRINGS):
        records.add({"rank": rank, "state": "failed", "detail": text, "host": text})
        metrics.write({"step": rank, "event": text, text: text})
        record_event(tmp_path, text, detail=text)
    records.close()
    metrics.close()
    assert [record["detail"] for record in read_records(tmp_path)] == STRINGS
    assert [row["event"] for row in read_rows(tmp_path / "metrics.jsonl")] == STRINGS
    events = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["detail"] for line in events] == STRINGS

    write_json(tmp_path / "run.json", STRINGS)
    assert read_json(tmp_path / "run.json") == STRINGS
    write_trainers_json(tmp_path / "config.json", {"config": STRINGS})
    assert json.loads((tmp_path / "config.json").read_text()) == {"config": STRINGS}

    record_request(tmp_path, STRINGS, None)
    request = read_request(tmp_path)
    assert request is not None
    assert request.arguments == STRINGS

    elements = [Element(text, {text: text}, [text], [text]) for text in STRINGS]
    with written(Sweep(tmp_path, STRINGS, str(tmp_path), elements)):
        assert read_sweep(tmp_path) == Sweep(tmp_path, STRINGS, str(tmp_path), elements)


def test_a_manifest_is_believed_only_where_its_files_are_the_folders_own(tmp_path: Path) -> None:
    def read_with(*names: str) -> list[str]:
        manifest = Manifest(1, 1, 1, 1, None, 1.0, "0", dict.fromkeys(names, Proof(1, "0")))
        (tmp_path / MANIFEST).write_bytes(render_manifest(manifest))
        return list(read_manifest(tmp_path).files)

    own = [text for text in STRINGS if is_file_name(text)]

    assert all(os.fsencode(name) and Path("/a", name).resolve().parent == Path("/a") for name in own)
    assert len(own) > 1000
    assert sorted(read_with(*own)) == sorted(set(own))
    for text in ["", "..", "/etc/passwd", "../../sbatch/env.sh", "a/b", "a\0", "\ud800"]:
        with pytest.raises(DamagedError, match="is no file of the folder"):
            read_with("model.safetensors", text)


def test_what_is_said_cannot_move_the_cursor_or_end_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(STRINGS)

    lines = capsys.readouterr().out.split("\n")[:-1]
    assert len(lines) == sum(text.count("\n") + 1 for text in STRINGS)
    assert all(sign == "\t" or sign.isprintable() or sign.isspace() or ord(sign) > 0x9F for sign in "".join(lines))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", "".join(lines))
    assert plain("a\tb\nc é漢😀") == "a\tb\nc é漢😀"


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_what_ranks_print_keeps_its_colours_on_a_terminal_and_nothing_else_that_steers_it() -> None:
    printed = "\x1b[31mred\x1b[0m 10%\r20%\x1b]0;x\x07\x1b[2J\x9b2J\b é漢\n".encode()

    assert plain_bytes(printed, io.BytesIO()) == printed
    assert plain_bytes(printed, Terminal()).decode() == "\x1b[31mred\x1b[0m 10%\r20%?]0;x??[2J?2J? é漢\n"


FIELDS = [action.option_strings[-1] for action in submit_parser()._actions if action.nargs is None]
"""Every option that takes a value."""


def test_every_field_of_a_request_takes_or_refuses_it_and_a_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = submit_parser()
    monkeypatch.setattr("cluster.request.parser", lambda: parser)
    monkeypatch.setattr("cluster.explain.submit_parser", submit_parser)
    statuses = []
    for number, text in enumerate(STRINGS):
        request = [FIELDS[number % len(FIELDS)], text, "--nodes=1", "--gpus=0", "--dry-run"]
        program = ["--program", "--", "true", text]

        status = run(submit, [*request, *program])

        said = capsys.readouterr()
        statuses.append(status)
        assert status in (COMPLETE, RequestError.status, LauncherError.status), (request, said.err)
        assert "\x1b" not in said.err
    assert statuses.count(COMPLETE) > 1000
    assert run(explain, ["--nodes=1", "--gpus=0", "-x", "A=\n\x1b[2Jb", "--program", "--", "true"]) == COMPLETE
    assert "A=??[2Jb\n" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


class Outline(HTMLParser):
    """The tags of a page, without those of rows and cells, and with the names of their attributes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[tuple[str, ...]] = set()
        self.scripts = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add((tag, *(name for name, _ in attributes)))
        self.scripts += tag == "script"


def outline(folder: Path) -> Outline:
    page = Outline()
    page.feed(render([read_reported(folder)], 1_790_000_000.0))
    return page


def hostile_run(folder: Path, texts: Iterator[str]) -> Path:
    """A run whose files hold these texts wherever they hold any, and more of them."""

    def spoiled(value: Any) -> Any:
        """The same with each text replaced by a hostile one."""
        if isinstance(value, dict):
            return {name: spoiled(one) for name, one in value.items()}
        if isinstance(value, list):
            return [spoiled(one) for one in value]
        return next(texts) if isinstance(value, str) else value

    run = make_run(folder, steps=20, ends=("hang", "rank crash"))
    for name in ("config.json", "run.json", "summary.json"):
        content = spoiled(json.loads((run / name).read_text()))
        if name == "config.json":
            content["config"] |= {f"x{number} {next(texts)}": next(texts) for number in range(3000)}
        (run / name).write_text(json.dumps(content))
    events = [json.dumps({"time": 1.79e9, "event": next(texts), next(texts): next(texts)}) for _ in range(1000)]
    (run / "events.jsonl").write_text("\n".join(events) + "\n")
    rows = (run / "metrics.jsonl").read_text()
    rows += "".join(json.dumps({"step": 20, "event": next(texts)}) + "\n" for _ in range(200))
    (run / "metrics.jsonl").write_text(rows)
    return run


def test_nothing_breaks_out_of_its_place_in_the_report(tmp_path: Path) -> None:
    texts = iter(text.encode(errors="replace").decode() for text in STRINGS)
    plain_run = make_run(tmp_path / "plain", steps=20, ends=("hang", "rank crash"))

    expected, found = outline(plain_run), outline(hostile_run(tmp_path / "hostile", texts))

    assert found.tags <= expected.tags
    assert found.scripts == expected.scripts


@pytest.mark.parametrize(
    ("command", "words"),
    [(status, ["a"]), (status, []), (logs, ["a"]), (logs, ["a", "--errors"]), (explain, ["a"])],
    ids=["status of one", "status of all", "logs", "errors", "explain"],
)
def test_what_run_files_hold_cannot_steer_the_terminal_that_shows_a_run(
    command: Callable[[list[str]], int], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = hostile_run(tmp_path / "a", itertools.cycle(STRINGS)) / "attempt-0001"
    places = {"log_dir": str(attempt), "attempt_dir": str(attempt), "run_dir": str(attempt.parent), "attempt": 1}
    plan = {"source": "ssh", "hosts": [["n1", 2, 2, 8]], **places, "master_addr": STRINGS[0]}
    (attempt / "plan.json").write_text(json.dumps({**plan, "master_port": 1, "store_token": "known to ranks alone"}))
    (attempt / "mpirun.txt").write_text(shlex.join(STRINGS), errors="replace")
    (attempt / "hostfile").write_text("".join(STRINGS), errors="replace")
    (attempt / "rank-0.log").write_text("Traceback (most recent call last):\n" + "".join(STRINGS), errors="replace")
    (attempt / "stacks.txt").write_text("".join(STRINGS), errors="replace")
    records = Records(attempt / "ranks.jsonl", {})
    for state, (rank, text) in itertools.product(("started", "failed"), enumerate(STRINGS)):
        what = {"detail": text, "host": text, "gpu": text, "outcome": "exception"}
        records.add({"rank": rank, "state": state, **what, "status": 1, "pid": 1, "time_ns": 1})
    records.close()
    terminal = io.TextIOWrapper(Terminal(), encoding="utf-8", write_through=True)
    monkeypatch.setattr("sys.stdout", terminal)

    assert run(command, [*words, "--output-dir", str(tmp_path)]) == COMPLETE

    terminal.seek(0)
    said = terminal.read()
    assert said
    assert "known to ranks alone" not in said
    assert not re.search(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]", said)


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11", "openmpi-4.1.8", "mpich-5.0.2"], indirect=True)
def test_the_most_hostile_are_only_words_to_a_real_slurm(slurm: SlurmLab, mpi: Mpi, tmp_path: Path) -> None:
    """Through sbatch's header, bash, mpirun and into the ranks, which say what they were given."""
    words = [text for text in STRINGS[:80] if "\0" not in text and text != "\ud800"]
    comment = "".join(text for text in words if text.isprintable() and len(text) < 100)
    (tmp_path / "echo.py").write_text("import json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ['SITE']]))\n")
    line = [sys.executable, "-m", "cluster", "submit", "--nodes=1", "--gpus=0", f"--sbatch=comment={comment}"]
    line += [
        f"--mpirun={mpi.mpirun}",
        "--experiment-name=echo",
        "-x",
        f"SITE={''.join(words)}",
        "--program",
        "--",
        "python",
        "echo.py",
        *words,
    ]
    (tmp_path / "cluster").symlink_to(ROOT / "cluster")

    slurm.run("ctl", line, cwd=tmp_path)
    request = json.loads((tmp_path / "outputs/echo/request.json").read_text())
    end = slurm.wait_job(request["job_id"])

    log = tmp_path / "outputs/echo/attempt-0001/logs/rank-0.log"
    assert end.state == "COMPLETED", next((tmp_path / "outputs/echo").glob("*.log")).read_text()
    assert json.loads(log.read_text()) == [words, "".join(words)]
    assert f"   Comment={comment} \n" in slurm.run("ctl", ["scontrol", "show", "job", request["job_id"]]).stdout
    assert not list(tmp_path.rglob(f"*{CANARY}*"))
