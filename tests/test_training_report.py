"""What a report says of runs, without a browser."""

import json
import math
import os
import random
import stat
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from report_runs import BEGIN, make_run, write_lines
from training.report.__main__ import main
from training.report.by_attempt import utc
from training.report.charts import figures_of, figures_together, labels
from training.report.differences import Row, different_options, results
from training.report.figure import VEGA_LITE
from training.report.heat import COLUMNS, ROWS, Heat
from training.report.page import _attempt, render
from training.report.run import Attempt, read_run
from training.report.thin import means, thin


@pytest.fixture(scope="module")
def requeued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was queued again three times; rank 2 is slow."""
    ends = ("node lost", "hang", "saved for requeue", "complete")
    return make_run(tmp_path_factory.mktemp("runs") / "a", ends=ends, slow_rank=2)


def test_a_long_series_is_thinned_without_losing_its_ends_and_a_single_spike():
    steps, values = array("d", range(100_000)), array("d", [1.0] * 100_000)
    values[54_321], values[77] = 99.0, -3.0
    points = thin(steps, values, 200)
    assert len(points) <= 200
    assert points[0] == (0, 1.0)
    assert points[-1] == (99_999, 1.0)
    assert {(54_321, 99.0), (77, -3.0)} < set(points)
    assert points == sorted(points)


def test_a_short_series_stays_as_it_is():
    assert thin([1, 2], [5.0, 6.0], 4) == means([1, 2], [5.0, 6.0], 4) == [(1, 5.0), (2, 6.0)]


def test_what_is_stacked_is_averaged_so_that_its_sum_stays():
    assert means([1, 2, 3, 4], [1.0, 3.0, 10.0, 20.0], 2) == [(2, 2.0), (4, 15.0)]


def test_a_field_of_many_ranks_and_steps_is_bounded_and_keeps_the_one_slow_step():
    heat = Heat()
    order = [(step, rank) for step in range(0, 5000, 10) for rank in range(0, 300, 3)]
    random.Random(0).shuffle(order)
    for step, rank in order:
        heat.add(step, rank, 9.0 if (step, rank) == (1230, 99) else 0.1)
    cells = list(heat.cells())
    assert len(cells) <= ROWS * COLUMNS
    [slow] = [cell for cell in cells if cell.seconds > 1]
    assert (slow.rank, slow.step) == (99, 1230)
    assert slow.first_step <= 1230 < slow.end_step
    assert slow.first_rank <= 99 < slow.end_rank


def test_every_axis_has_a_name_with_its_unit(requeued: Path):
    run = read_run(requeued)
    figures = [*figures_together([run]), *figures_of(run, BEGIN)]
    kinds = "loss perplexity lr grad_norm tokens mfu step_seconds memory phases ranks attempts spent"
    assert [figure.key for figure in figures] == kinds.split()
    for figure in figures:
        for layer in figure.spec.get("layer", [figure.spec]):
            for name in ("x", "y"):
                assert "(" in layer["encoding"].get(name, {"title": "()"})["title"]


def test_each_figure_is_told_in_words(requeued: Path):
    run = read_run(requeued)
    words = {figure.key: figure.sentence for figure in [*figures_together([run]), *figures_of(run, BEGIN)]}
    assert words["memory"].startswith("Memory of rank 0 allocated: from 3 at step 1 to 3 at step 200; lowest")
    assert words["ranks"].startswith("Of 4 ranks: usually 6")
    assert " of rank 2 at step " in words["ranks"]
    assert words["attempts"].endswith("attempt 1: node lost; attempt 2: hang.")
    assert words["spent"].startswith("Of 232 minutes: queue 9%, start 2%, train 86%, lost 3%")


@pytest.mark.parametrize(
    ("length", "unit"), [(8, "seconds"), (179, "seconds"), (180, "minutes"), (10_799, "minutes"), (10_800, "hours")]
)
def test_where_the_time_went_is_told_in_a_unit_that_reads_well(tmp_path: Path, length: float, unit: str):
    entry = {"attempt": 1, "started": BEGIN, "ended": BEGIN + length, "accounting": {"train": length}}
    (tmp_path / "run.json").write_text(json.dumps({"attempts": [entry]}))
    [_, spent] = figures_of(read_run(tmp_path), BEGIN)
    assert spent.spec["encoding"]["x"]["title"] == f"time ({unit})"


def test_the_clock_of_the_attempts_has_24_hours(tmp_path: Path):
    import vl_convert

    [time_line] = [one for one in figures_of(read_run(make_run(tmp_path / "a")), BEGIN) if one.key == "attempts"]
    drawn = vl_convert.vegalite_to_svg({**time_line.spec, "width": 800}, VEGA_LITE)
    assert utc(BEGIN).endswith("14:13:20")
    assert [label for label in ("14:30", "15:00", "02:30", "03:00") if f">{label}<" in drawn] == ["14:30", "15:00"]


def test_of_a_single_step_the_phases_are_seen_too(tmp_path: Path):
    [phases] = [one for one in figures_of(read_run(make_run(tmp_path / "a", steps=1)), BEGIN) if one.key == "phases"]
    assert phases.spec["mark"]["type"] == "bar"


@pytest.mark.parametrize(
    ("steps", "words"),
    [({"resumed": 0, "last": 3, "saved": None}, "0 → 3, saved –"), ({"last": 3}, "– → 3, saved –"), (None, "")],
)
def test_steps_that_an_attempt_does_not_know_are_a_dash(steps: dict[str, int | None] | None, words: str):
    assert _attempt(Attempt(1, BEGIN, None, None, {"steps": steps}, {}, {}))["steps"] == words


def test_an_attempt_without_an_end_lasts_until_now(tmp_path: Path):
    entry = {"attempt": 1, "started": BEGIN}
    (tmp_path / "run.json").write_text(json.dumps({"attempts": [entry]}))
    [line] = figures_of(read_run(tmp_path), BEGIN + 60)
    [bar] = line.spec["layer"][0]["data"]["values"]
    assert bar["e"] - bar["x"] == 60_000
    assert bar["k"] == "no verdict"


def test_what_differs_between_runs_is_told_and_what_is_the_same_is_not(tmp_path: Path):
    runs = [
        read_run(make_run(tmp_path / name, ranks=ranks, lr=lr)) for name, ranks, lr in (("a", 4, 1e-4), ("b", 8, 1.0))
    ]
    assert different_options(runs) == [Row("--lr", ["0.0001", "1.0"]), Row("ranks", ["4", "8"])]
    came_out = dict(results(runs))
    assert came_out["steps"] == ["200", "200"]
    assert came_out["training kept"] == ["89.3%", "89.3%"]
    assert float(came_out["perplexity"][0]) == pytest.approx(math.exp(float(came_out["held-out loss"][0])), rel=1e-3)


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    folders = [make_run(tmp_path / place / "a", steps=4) for place in ("x", "y")]
    runs = [read_run(folder) for folder in folders]
    assert labels(runs) == [str(folder) for folder in folders]
    assert labels([runs[0], runs[0]]) == [f"{folders[0]} (1)", f"{folders[0]} (2)"]


def test_files_that_are_damaged_or_half_written_are_read_as_far_as_they_go(tmp_path: Path):
    rows: list[Any] = [
        {"step": 1, "loss": 2.0},
        [],
        "x",
        {"step": "1", "loss": 3},
        {"loss": 3},
        {"step": 2, "loss": None},
    ]
    write_lines(tmp_path / "metrics.jsonl", [*rows, {"step": 2, "loss": True}, {"step": 3, "loss": 1.0}])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo\xff')
    (tmp_path / "config.json").write_text('{"config": [], "world_size": "many"')
    (tmp_path / "run.json").write_text('{"attempts": [3, {"attempt": 1}, {"attempt": 1, "started": 1, "verdict": 7}]}')
    (tmp_path / "rank_times.jsonl").write_text('{"step": 1, "first_rank": 0, "busy_seconds": [1, null, "x", 2]}\n{')
    (tmp_path / "events.jsonl").write_text('{"time": "now"}\n{"time": 5, "event": {"a": 1}}\n')
    run = read_run(tmp_path)
    assert list(run.series["loss"].steps) == [1, 3]
    assert [cell.rank for cell in run.heat.cells()] == [0, 3]
    assert len(run.attempts) == len(run.events) == 1
    assert "ended without a verdict" in render([run], BEGIN)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_what_runs_write_is_text_and_never_markup(tmp_path: Path):
    run = make_run(tmp_path / "a", steps=4, answer=HOSTILE, ends=(HOSTILE,))
    (run / "config.json").write_text(json.dumps({"config": {HOSTILE: HOSTILE}}))
    write_lines(run / "events.jsonl", [{"time": BEGIN, "event": HOSTILE, HOSTILE: HOSTILE}])
    folder = run.rename(tmp_path / "<img src=x onerror=alert(3)>")
    page, _, script = render([read_run(folder), read_run(folder)], BEGIN).partition("<script nonce=")
    assert "<img" not in page
    assert "<script>" not in page
    assert "&lt;img src=x onerror=alert(2)&gt;" in page
    assert page.count("</script") == 2
    assert script.count("</script") == 1


def test_the_rank_map_has_a_line_for_each_rank_and_of_very_many_for_each_host(tmp_path: Path):
    run = make_run(tmp_path / "a", steps=4, ranks=5)
    assert '<th scope="row">4</th><td>n2</td><td>2</td><td>2</td>' in render([read_run(run)], BEGIN)
    hosts = [[f"n{host}", 8, 8, 64] for host in range(10_000)]
    (run / "attempt-0001/plan.json").write_text(json.dumps({"hosts": hosts}))
    page = render([read_run(run)], BEGIN)
    assert '<th scope="row">8 to 15</th><td>n1</td><td>0 to 7</td><td>0 to 7</td>' in page
    assert "9000 more lines are in" in page


def test_a_report_is_for_its_owner_alone_and_replaces_the_one_before(requeued: Path, capsys):
    path = requeued / "report.html"
    path.write_text("before")
    path.chmod(0o644)
    assert main([str(requeued)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("<!doctype html>")
    assert [name for name in os.listdir(requeued) if name.startswith(".")] == []


def test_several_runs_come_into_one_page_here_or_where_it_is_said(requeued: Path, tmp_path: Path, monkeypatch, capsys):
    make_run(tmp_path / "outputs/b", steps=4)
    monkeypatch.chdir(tmp_path)
    assert main([str(requeued), "b"]) == 0
    assert main([str(requeued), "b", "--output", "both.html"]) == 0
    assert capsys.readouterr().out == "report.html\nboth.html\n"
    assert "What differs" in Path("both.html").read_text()


def test_the_plots_as_pictures(tmp_path: Path, capsys):
    write_lines(tmp_path / "metrics.jsonl", [{"step": step, "lr": 1 / step} for step in (1, 2, 3)])
    assert main([str(tmp_path), "--png", str(tmp_path / "new/pictures")]) == 0
    [path] = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "new/pictures/lr.png")
    assert Path(path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ([], "no run was given: a run's directory or the name of an experiment is wanted"),
        (["nowhere"], "'nowhere': no such folder, and no run of that name in outputs; give a run's directory"),
        (["fisrt"], "'fisrt': no such folder, and no run of that name in outputs: did you mean first?"),
        (["."], ".: there is neither metrics.jsonl, config.json nor run.json in it; give a run's directory"),
        (
            ["a", "--output", "no/report.html"],
            "no/report.html cannot be written: No such file or directory; choose another place",
        ),
        (["a", "--output", "x.html", "--png", "x"], "--output and --png: the page or the pictures; give one of them"),
        (["a", "--ouput", "x"], "unknown option --ouput: did you mean --output?"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_64(argv: list[str], wanted: str, tmp_path: Path, monkeypatch, capsys):
    make_run(tmp_path / "a", steps=2)
    (tmp_path / "outputs/first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 64
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert wanted in line


def test_what_draws_not_being_installed_is_told_with_the_way_to_have_it(requeued: Path, monkeypatch, capsys):
    monkeypatch.setattr("training.report.__main__.NEEDS", ("no_such_package",))
    assert main([str(requeued)]) == 64
    wanted = "error: no_such_package not installed: pip install 'slurm-mpi-train[report]'\n"
    assert capsys.readouterr().err == wanted


def test_nothing_heavy_is_loaded_and_the_help_fits_a_screen(requeued: Path):
    code = "import sys; from training.report.__main__ import main; main(sys.argv[1:]); "
    code += "print({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules))"
    command = [sys.executable, "-c", code, str(requeued)]
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.endswith("set()\n")
    command = [sys.executable, "-m", "training.report", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "python -m training.report a b c --output compare.html" in printed
    assert len(printed.splitlines()) <= 30
