"""What `python -m cluster status` shows: of one run, of all runs, whatever Slurm says of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RequestError
from cluster.goodput import PARTS
from cluster.jobs import Job, look_up, own_ids, parse_accounted, parse_queue, with_positions
from cluster.lock import launcher_holds, only_launcher_of
from cluster.progress import all_rows, last_rows, progress, read_progress
from cluster.request_file import record_request
from cluster.run_state import Snapshot, look, state_of, states
from cluster.runs import all_runs, find_run
from cluster.status import frame, gpu_hours, main, now_line, watch
from cluster.terminal import table
from conftest import ROOT
from stand_ins import stand_ins

CRASHED: dict[str, Any] = {
    "attempt": 1,
    "started": 1_790_000_000.0,
    "ended": 1_790_000_083.0,
    "seconds": 83.0,
    "job_id": "7",
    "verdict": {
        "kind": "rank crash",
        "status": 1,
        "summary": "raised ValueError: boom",
        "rank": 3,
        "host": "n2",
        "gpu": "1",
        "next": "less logs/rank-3.log",
    },
    "steps": {"resumed": 0, "last": 17, "saved": 10},
    "accounting": {**dict.fromkeys(PARTS, 0.0), "train": 60.0, "start": 3.0, "lost": 20.0},
}


def make_run(output_dir: Path, name: str = "a", attempts: list[dict[str, Any]] | None = None, **facts: Any) -> Path:
    run_dir = output_dir / name
    (run_dir / "attempt-0001").mkdir(parents=True)
    plan = {"log_dir": "/logs/attempt-0001", "source": "slurm", "hosts": [["n1", 2, 2, 8], ["n2", 2, 2, 8]]}
    (run_dir / "attempt-0001/plan.json").write_text(json.dumps(plan))
    run = {"experiment": name, "attempts": [CRASHED] if attempts is None else attempts, **facts}
    (run_dir / "run.json").write_text(json.dumps(run))
    return run_dir


def test_a_run_shows_its_attempts_its_goodput_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    run_dir = make_run(tmp_path, excluded_hosts=["n2"])

    assert main(["a", "--output-dir", str(tmp_path)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a · rank crash · {run_dir}"
    assert [line.split("  ")[0] for line in lines[3:5]] == ["attempt", "1"]
    assert lines[1] == "step 17 · job 7"
    for fact in ("0:01:23", "rank crash (1)", "rank 3 on n2, GPU 1", "0 → 17", "10"):
        assert fact in lines[4]
    assert "effective training time 72.3% of 0:01:23 (72.3% without the queue), 0 restarts" in lines
    assert lines[-3:] == ["excluded hosts: n2", "next: less logs/rank-3.log", "logs: /logs/attempt-0001"]


def test_an_attempt_without_verdict_runs_while_its_launcher_holds_the_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path, attempts=[{"attempt": 1, "started": 1.0}])

    with only_launcher_of(run_dir):
        main([str(run_dir)])
    assert "  running" in capsys.readouterr().out.splitlines()[3]
    main([str(run_dir)])
    assert "a · unfinished (its launcher has gone without a verdict)" in capsys.readouterr().out


def test_looking_whether_a_launcher_holds_the_directory_leaves_it_as_it_is(tmp_path: Path) -> None:
    assert not launcher_holds(tmp_path)
    with only_launcher_of(tmp_path):
        assert launcher_holds(tmp_path)
    assert not launcher_holds(tmp_path)
    with only_launcher_of(tmp_path):
        pass


def test_a_run_is_found_by_its_directory_its_name_its_job_and_as_the_newest(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)

    assert find_run(str(run_dir), Path("nowhere")) == run_dir
    assert find_run("a", tmp_path) == run_dir
    assert find_run("7", tmp_path) == run_dir
    assert find_run(None, tmp_path) == run_dir


@pytest.mark.parametrize(
    ("given", "words"),
    [("smoke_mpu", "did you mean smoke_mpi?"), ("zzz", "wanted a directory with run.json"), (None, "")],
)
def test_an_unknown_run_is_an_error_that_says_what_was_probably_meant(
    given: str | None, words: str, tmp_path: Path
) -> None:
    if given:
        make_run(tmp_path, "smoke_mpi")

    with pytest.raises(RequestError, match=f"^no run .*{words.replace('?', '.')}"):
        find_run(given, tmp_path)


def test_a_run_of_an_earlier_version_is_shown_too(tmp_path: Path) -> None:
    old = {"attempt": 1, "started": 1.0, "ended": 2.0, "seconds": 1.0, "verdict": {"kind": "complete", "status": 0}}

    assert main([str(make_run(tmp_path, attempts=[old]))]) == 0
    assert main([str(make_run(tmp_path, "empty", attempts=[]))]) == 0


def test_everything_can_be_had_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(make_run(tmp_path)), "--json"])

    report = json.loads(capsys.readouterr().out)
    assert report["attempts"] == [CRASHED]
    assert report["goodput"]["effective"] == pytest.approx(60 / 83)
    assert (report["state"], report["logs"]) == ("rank crash", "/logs/attempt-0001")


def test_half_a_run_json_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    (make_run(tmp_path) / "run.json").write_text('{"attempts": [')

    done = subprocess.run(
        [sys.executable, "-m", "cluster.status", str(tmp_path / "a")], capture_output=True, text=True, cwd=ROOT
    )

    assert done.returncode == 64
    assert done.stderr.startswith("error: ")
    assert "run.json cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


# ── the list ──────────────────────────────────────────────────────────────────────────────────────

SLURM = """\
# Answers with the file that is named after it, and writes down that it was asked.
echo "$(basename $0) $@" >> {folder}/asked
exec cat {folder}/$(basename $0).txt
"""


@pytest.fixture
def slurm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put programs of Slurm on PATH that answer so; the others are missing. Its `asked` are the calls so far."""
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", stand_ins(folder, squeue="exit 1", scontrol="exit 1", sacct="exit 1"))

    class Says:
        def __call__(self, **answers: str) -> None:
            for program, answer in answers.items():
                (folder / f"{program}.txt").write_text(answer)
                stand_ins(folder, **{program: SLURM.format(folder=folder)})

        @property
        def asked(self) -> list[str]:
            path = folder / "asked"
            return path.read_text().splitlines() if path.exists() else []

    return Says()


def saved(job_id: str = "12") -> dict[str, Any]:
    """An attempt that saved and had its job queued again."""
    return {**CRASHED, "job_id": job_id, "verdict": {"kind": "saved for requeue", "status": 75}}


def requeued(run_dir: Path) -> Path:
    (run_dir / "events.jsonl").write_text('{"event": "verdict"}\n{"event": "requeue"}\n')
    return run_dir


def test_the_list_shows_every_run_with_its_place_in_the_queue_and_asks_slurm_once(
    tmp_path: Path, slurm_says: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "out", "done", [{**CRASHED, "verdict": {"kind": "complete", "status": 0}}])
    again = requeued(make_run(tmp_path / "out", "again", [saved()]))
    rows = [{"step": n, "loss": 3.0, "tokens_per_second": 5e4, "step_seconds": 0.5} for n in range(1, 18)]
    (again / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (again / "config.json").write_text('{"config": {"max_steps": 100, "num_epochs": 3.0}}')
    slurm_says(
        squeue="11|PENDING|Priority|N/A|gpu|9|11|N/A\n12|PENDING|Resources|2030-01-31T12:00:00|gpu|5|12|N/A\n"
        "13|PENDING|Priority|N/A|gpu|1|13|N/A\n14|RUNNING|None|2026-01-31T12:00:00|gpu|9|14|N/A\n"
    )

    assert main(["--output-dir", str(tmp_path / "out")]) == 0

    head, first, second = sorted(capsys.readouterr().out.splitlines(), key=lambda line: line.startswith(("a", "d")))
    assert head.split() == ["run", "state", "step", "loss", "tokens/s", "ETA", "restarts", "goodput", "job"]
    again_line, done_line = sorted([first, second])
    place = "12  Resources · 2 of 3 in gpu · starts about 2030-01-31 12:00"
    assert again_line.split() == ["again", "queued", "17/100", "3.0000", "50,000", "–", "0", "72.3%", *place.split()]
    assert done_line.split() == ["done", "complete", "17", "–", "–", "–", "0", "72.3%", "7"]
    assert [call.split()[0] for call in slurm_says.asked] == ["squeue"]


def test_a_run_that_was_only_asked_for_is_in_the_list(tmp_path: Path, slurm_says: Any) -> None:
    record_request(tmp_path / "out/new", ["--nodes", "2"], "12")
    slurm_says(squeue="12|PENDING|Dependency|N/A|gpu|0|12|N/A\n")

    [run] = map(look, all_runs(tmp_path / "out"))
    [(state, _)] = states([run])

    assert str(state) == "queued (Dependency)"


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ({"squeue": "12|PENDING|BeginTime|N/A|gpu|5|12|N/A\n"}, "queued (BeginTime)"),
        ({"squeue": "12|COMPLETING|None|2026-01-31T12:00:00|gpu|5|12|N/A\n"}, "ending"),
        ({"squeue": "12|RUNNING|None|2030-01-31T12:00:00|gpu|5|12|N/A\n"}, "starting"),
        ({"squeue": "12|CANCELLED|None|N/A|gpu|5|12|N/A\n"}, "saved for requeue"),
        ({"squeue": ""}, "saved for requeue"),
        ({"scontrol": "JobId=12 JobState=PENDING Reason=Priority\n"}, "queued (Priority)"),
        ({"sacct": "12|PENDING|Unknown|gpu|12\n"}, "queued"),
        ({"sacct": "12|CANCELLED by 0|None|gpu|12\n"}, "saved for requeue"),
        ({}, "queued (again, as its launcher said; Slurm does not answer here)"),
    ],
    ids=str,
)
def test_right_after_a_requeue_the_state_is_what_any_program_of_slurm_knows(
    answers: dict[str, str], state: str, tmp_path: Path, slurm_says: Any
) -> None:
    slurm_says(**answers)

    [(found, _)] = states([look(requeued(make_run(tmp_path / "out", attempts=[saved()])))])

    assert str(found) == state


@pytest.mark.parametrize(
    ("job", "answered", "state"),
    [
        (Job("CANCELLED"), True, "cancelled (before its launcher began)"),
        (Job("NODE_FAIL"), True, "node fail (before its launcher began)"),
        (None, True, "unfinished (Slurm no longer knows job 12)"),
        (None, False, "queued (as it was submitted; Slurm does not answer here)"),
        (Job("RUNNING", start=100.0), True, "starting"),
    ],
    ids=str,
)
def test_a_job_that_has_had_no_attempt_yet_is_what_slurm_says(
    job: Job | None, answered: bool, state: str, tmp_path: Path
) -> None:
    record_request(tmp_path / "a", [], "12")

    assert str(state_of(look(tmp_path / "a"), job, answered)) == state


@pytest.mark.parametrize(
    ("held", "job", "state"),
    [
        (True, None, "running"),
        (False, Job("RUNNING", start=90.0), "running"),  # its lock cannot be seen from here
        (False, Job("RUNNING", start=200.0), "starting"),  # a later start of the job than this attempt's
        (False, Job("SUSPENDED"), "suspended"),
        (False, Job("NODE_FAIL"), "unfinished (job 12 node fail, without a verdict)"),
        (False, None, "unfinished (its launcher has gone without a verdict)"),
    ],
    ids=str,
)
def test_an_attempt_without_verdict_is_what_its_lock_and_its_job_say(held: bool, job: Job | None, state: str) -> None:
    attempt = {"attempt": 1, "started": 100.0, "job_id": "12"}

    run = Snapshot(Path("a"), [attempt], [], request=None, held=held, requeued=False)

    assert str(state_of(run, job, answered=True)) == state


@pytest.mark.parametrize(
    ("verdict", "requeued", "facts", "state"),
    [
        ({"kind": "rank crash", "next": "less …"}, False, {}, "rank crash"),
        ({"kind": "node lost", "next": "less …"}, False, {}, "node lost"),
        ({"kind": "rank crash"}, False, {}, "ending"),  # its launcher has not said yet what follows
        ({"kind": "node lost", "next": "the job queues itself again"}, True, {}, "ending"),
        ({"kind": "preempted", "next": "Slurm queues the job again"}, False, {}, "ending"),
        ({"kind": "node lost", "next": "less …"}, False, {"cut_off": True}, "ending"),  # Slurm finds out later
    ],
    ids=str,
)
def test_a_run_whose_job_lives_on_is_over_unless_another_start_follows_by_itself(
    verdict: dict[str, Any], requeued: bool, facts: dict[str, Any], state: str
) -> None:
    attempt = {"attempt": 1, "started": 100.0, "job_id": "12", "verdict": verdict, **facts}

    run = Snapshot(Path("a"), [attempt], [], request=None, held=False, requeued=requeued)

    assert str(state_of(run, Job("RUNNING", start=90.0), answered=True)) == state


def test_accounting_is_asked_only_for_jobs_of_which_nothing_else_tells(slurm_says: Any) -> None:
    slurm_says(squeue="12|RUNNING|None|2026-01-31T12:00:00|gpu|5|12|N/A\n", sacct="13|FAILED|Unknown|gpu|13\n")

    jobs = look_up({"12", "13", "14"}, unsettled={"12", "13"})

    assert {job_id: job.state for job_id, job in jobs.known.items()} == {"12": "RUNNING", "13": "FAILED"}
    assert slurm_says.asked[-1] == "sacct -nPX -j 13 -o JobIDRaw,State,Start,Partition,JobID"


def test_a_place_in_the_queue_is_by_priority_within_a_partition() -> None:
    text = (
        "1|PENDING||N/A|cpu|9|1|N/A\n2|PENDING||N/A|gpu|5|2|N/A\n3|PENDING||N/A|gpu,cpu|9|3|N/A\n"
        "half a line|\n4|RUNNING||N/A|gpu|9|4|N/A\n"
    )

    jobs = with_positions(parse_queue(text))

    places = {job_id: (job.position, job.waiting) for job_id, job in jobs.items()}
    assert places == {"1": (1, 2), "2": (2, 2), "3": (1, 2), "4": (None, None)}


def test_of_a_job_that_was_queued_again_accounting_counts_the_last_row() -> None:
    assert parse_accounted("12|NODE_FAIL|2026-01-31T12:00:00|gpu|12\n12|RUNNING|2026-01-31T13:00:00|gpu|12\n")[
        "12"
    ].state == ("RUNNING")


def test_an_element_of_an_array_is_found_by_the_id_that_squeue_shows(tmp_path: Path, slurm_says: Any) -> None:
    run_dir = make_run(tmp_path / "out", "sweep-3", [saved("15")])
    slurm_says(scontrol="JobId=15 ArrayJobId=12 ArrayTaskId=3 JobState=RUNNING\n")

    assert find_run("12_3", tmp_path / "out") == run_dir
    assert slurm_says.asked == ["scontrol show job -d 12_3"]


def test_elements_of_an_array_are_known_before_they_have_a_number_of_their_own(slurm_says: Any) -> None:
    waiting = "12|PENDING|Priority|N/A|gpu|5|12|0,4-6,8-12:2%2\n"
    slurm_says(squeue=f"{waiting}15|RUNNING|None|2026-01-31T12:00:00|gpu|5|12|3\n9|PENDING|Priority|N/A|gpu|1|9|5\n")

    jobs = look_up({"12_3", "12_5", "12_7", "12_10"}, unsettled=[])

    assert {job_id: job.state for job_id, job in jobs.known.items()} == {
        "12_3": "RUNNING",
        "12_5": "PENDING",
        "12_10": "PENDING",
    }


def test_accounting_knows_an_element_by_both_its_ids() -> None:
    assert set(parse_accounted("15|FAILED|Unknown|gpu|12_3\n")) == {"15", "12_3"}


def test_of_an_arrays_number_the_state_is_that_of_its_last_element_alone(slurm_says: Any) -> None:
    last, first = "JobId=1 ArrayJobId=1 ArrayTaskId=3", "JobId=2 ArrayJobId=1 ArrayTaskId=0"
    slurm_says(scontrol=f"{last}\n  JobState=PENDING\n\n{first}\n  JobState=FAILED\n")

    assert look_up({"1"}, unsettled=[]).known["1"].state == "PENDING"


# ── progress ──────────────────────────────────────────────────────────────────────────────────────


def test_of_long_metrics_only_whole_rows_at_the_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(5000)) + '{"step": 5000, "lo')

    rows = last_rows(path)

    assert rows[-1] == {"step": 4999, "loss": 1.0}
    assert len(rows) < 1000
    assert last_rows(tmp_path / "none") == []


def test_the_steps_left_take_as_long_as_the_last_ones() -> None:
    rows = [{"step": 10 * n, "epoch": 0.2 * n, "loss": 2.0, "step_seconds": 0.5} for n in range(1, 6)]

    far = progress([*rows, {"step": 50, "eval_loss": 1.5}], {"max_steps": 60, "num_epochs": 3.0})

    assert (far.step, far.total, far.held_out_loss, far.seconds_left) == (50, 60, 1.5, 5.0)
    assert progress(rows, {"max_steps": None, "num_epochs": 3.0}).total == 150
    assert progress([], {}) == (None,) * 6


def test_gpu_hours_count_every_attempt_and_the_one_that_runs_until_now() -> None:
    hosts = [["n1", 8, 8, 64], ["n2", 8, 8, 64]]
    attempts = [{"seconds": 3600.0, "hosts": hosts, "verdict": {}}, {"started": 100.0, "hosts": hosts[:1]}]

    assert gpu_hours(attempts, now=1900.0) == 16 + 4
    assert gpu_hours(attempts, now=None) == 16
    assert gpu_hours([{"seconds": 3600.0, "hosts": [["localhost", 2, None, 2]]}], now=None) is None


# ── how it looks ──────────────────────────────────────────────────────────────────────────────────


def test_a_frame_fits_the_terminal_and_clears_what_was_there() -> None:
    lines = frame(["a" * 100, "b", "c", "d"], columns=10, rows=5, clock="12:00").split("\x1b[K\n")

    assert lines == ["\x1b[?25l\x1b[H" + "a" * 10, "b", "c", "… 1 more", "\x1b[J"]


def test_a_run_whose_name_holds_control_characters_cannot_change_the_terminal() -> None:
    assert table([["run"], ["a\x1b[2J"]]) == ["run", "a?[2J"]


def test_a_damaged_run_does_not_keep_the_others_from_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (make_run(tmp_path, "damaged") / "run.json").write_text('{"attempts": [')
    make_run(tmp_path, "whole")

    assert main(["--output-dir", str(tmp_path), "--json"]) == 0

    runs = {run["experiment"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert (runs["whole"]["state"], runs["damaged"]["state"]) == ("rank crash", "unfinished")
    assert runs["damaged"]["detail"].startswith("run.json cannot be read")


def test_without_any_run_the_list_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output-dir", str(tmp_path / "none")]) == 0

    assert capsys.readouterr().out == f"no run in {tmp_path}/none\n"


def test_a_job_is_found_also_beside_runs_that_cannot_be_read_and_a_sweep_is_told_apart(
    tmp_path: Path, slurm_says: Any
) -> None:
    (make_run(tmp_path / "out", "damaged") / "run.json").write_text("{")
    make_run(tmp_path / "out", "other", [{**CRASHED, "job_id": "7"}])
    wanted = make_run(tmp_path / "out", "wanted", [{**CRASHED, "job_id": "8"}])
    (tmp_path / "out/s").mkdir()
    (tmp_path / "out/s/sweep.json").write_text('{"arguments": [], "directory": "/", "elements": []}')

    assert find_run("8", tmp_path / "out") == wanted
    with pytest.raises(RequestError, match=r"^no run 9, "):
        find_run("9", tmp_path / "out")
    with pytest.raises(RequestError, match=r"^s is a sweep: python -m cluster sweep s, or name one of its runs$"):
        find_run("s", tmp_path / "out")


def test_what_is_no_line_of_slurms_is_left_out(slurm_says: Any) -> None:
    assert parse_queue("slurm_load_jobs error: Unable to contact slurm controller\n") == {}
    assert parse_accounted("sacct: error\n15||Unknown|gpu|15\n") == {}
    assert own_ids("12|PENDING|Resources|N/A|gpu|1|12|N/A\n", ["12_3"]) == {}


def test_a_status_that_is_watched_is_shown_again_and_again_until_ctrl_c(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([["one"], ["two"]])

    def look_again() -> list[str]:
        if lines := next(looks, None):
            return lines
        raise KeyboardInterrupt

    watch(look_again, 0)

    assert capsys.readouterr().out == "one\n\ntwo\n\n"


def test_on_a_terminal_it_is_redrawn_in_place_and_the_cursor_comes_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("time.sleep", interrupted)

    watch(lambda: ["one"], 5)

    shown = capsys.readouterr().out
    assert shown.startswith("\x1b[?25l\x1b[Hone\x1b[K\n")
    assert shown.endswith("\x1b[?25h")


def test_the_status_of_a_run_is_watched_by_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[tuple[list[str], float]] = []
    monkeypatch.setattr("cluster.status.watch", lambda look_again, seconds: watched.append((look_again(), seconds)))

    assert main(["--watch", "7", "--output-dir", str(tmp_path)]) == 0

    assert watched == [([f"no run in {tmp_path}"], 7)]


def test_where_a_run_stands_is_one_line_of_all_that_is_known() -> None:
    unknown = dict.fromkeys(
        ("step", "total_steps", "loss", "held_out_loss", "tokens_per_second", "seconds_left", "gpu_hours")
    )
    nothing = {**unknown, "job_id": None, "queue_position": None, "expected_start": None}
    numbers = {"step": 17, "total_steps": 50, "loss": 2.5, "held_out_loss": 2.25, "tokens_per_second": 13210.4}
    known = {**nothing, **numbers, "seconds_left": 37.0, "gpu_hours": 1.25, "job_id": "12"}

    assert now_line(nothing) == ""
    queued = {"job_id": "12", "queue_position": 2, "queue_length": 5, "partition": "gpu"}
    assert now_line({**nothing, **queued}) == "job 12 · 2 of 5 in gpu"
    assert now_line(known) == (
        "step 17/50 · loss 2.5000 · held-out loss 2.2500 · 13,210 tokens/s · ETA 0:00:37 · 1.2 GPU hours · job 12"
    )


@pytest.mark.parametrize("text", ["[]", '{"config": 3}', "{", "[" * 100_000], ids=lambda text: text[:12])
def test_settings_and_rows_that_are_none_leave_nothing_known(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text(f'{text}\n[1]\n{{"step": "one"}}\n{{"step": 3, "loss": 2.0}}\n')

    assert (read_progress(tmp_path).step, read_progress(tmp_path).loss) == (3, 2.0)
    assert all_rows(tmp_path / "none.jsonl") == []


WRONG = ("x", [1], {"a": 1}, True, 10**400, float("nan"), float("inf"), 1e-320, -1)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:9])
def test_a_value_of_the_wrong_kind_leaves_unknown_what_follows_from_it(wrong: object, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    names = ("epoch", "step_seconds", "eval_loss", "tokens_per_second", "step")
    rows = [{"step": 3, "loss": 2.0, "epoch": 1.0, name: wrong} for name in names]
    (run_dir / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 4, "loss": wrong}])
    )

    for name in ("max_steps", "num_epochs"):
        (run_dir / "config.json").write_text(json.dumps({"config": {name: wrong}}))
        assert read_progress(run_dir).step is not None
        assert main(["a", "--output-dir", str(tmp_path)]) == 0
