"""`cluster sweep`: the grid, what is shown and refused, the ranking, and arrays on a real Slurm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import element
from cluster.errors import LauncherError, MayBeQueued, RequestError
from cluster.grid import combinations, index_list, name_of, parse_grid
from cluster.plan import ResourcePlan, hours
from cluster.ranking import ranking, ranking_lines
from cluster.rundir import check_experiment_name
from cluster.sweep import cost, main, others_unchanged
from cluster.sweep_file import Element, Sweep, extended, find_sweep, read_sweep, written
from conftest import ROOT, Mpi
from slurm_lab import SlurmLab
from stand_ins import stand_ins
from waiting import wait_until


def sweep(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", "sweep", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
    )


def test_a_grid_is_every_combination_the_last_option_first() -> None:
    grid = parse_grid(["lr=1e-4,3e-4", "seed=0..1,7"])

    assert grid == {"lr": ["1e-4", "3e-4"], "seed": ["0", "1", "7"]}
    assert [name_of(values) for values in combinations(grid)] == [
        "lr=1e-4_seed=0",
        "lr=1e-4_seed=1",
        "lr=1e-4_seed=7",
        "lr=3e-4_seed=0",
        "lr=3e-4_seed=1",
        "lr=3e-4_seed=7",
    ]


def test_a_range_holds_both_its_ends_and_may_be_negative() -> None:
    assert parse_grid(["x=-1..1"]) == {"x": ["-1", "0", "1"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr"], "--grid lr: wanted OPTION=VALUE,VALUE without dashes"),
        (["--lr=1"], "--grid --lr=1: wanted OPTION=VALUE,VALUE without dashes"),
        (["lr="], "--grid lr: a value is empty"),
        (["lr=1,,2"], "--grid lr: a value is empty"),
        (["lr=1,2,1"], "--grid lr: 1 is given twice"),
        (["seed=0..3", "seed=7"], "--grid seed is given twice"),
        (["seed=0..3,2"], "--grid seed: 2 is given twice"),
        (["seed=4..0"], r"--grid seed=4\.\.0: wanted a range from the smaller to the larger"),
        (["seed=0..999999999"], r"--grid seed=0\.\.999999999: wanted a range"),
        (["a=0..999", "b=0..999"], "--grid has 1,000,000 combinations of 2 options: at most 100,000"),
        (["experiment_name=a,b"], "--grid experiment-name: the sweep gives each run its own"),
    ],
    ids=str,
)
def test_a_grid_that_is_not_understood_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        parse_grid(words)


@pytest.mark.parametrize("value", ["../data", "a/b", "x y", "é", "v" * 300, "..", "a..b"])
def test_every_value_gives_a_name_that_can_be_a_directorys(value: str) -> None:
    other = name_of({"dataset-name": value + "/"})

    assert check_experiment_name(name_of({"dataset-name": value})) != other


@pytest.mark.parametrize(("indexes", "text"), [([0, 1, 2, 3], "0-3"), ([0, 2, 3, 7], "0,2-3,7"), ([5], "5")], ids=str)
def test_indexes_are_told_as_sbatch_has_them(indexes: list[int], text: str) -> None:
    assert index_list(indexes) == text


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("90", 1.5),
        ("30:00", 0.5),
        ("04:00:00", 4.0),
        ("1-12", 36.0),
        ("1-00:30", 24.5),
        ("2-01:30:00", 49.5),
        ("UNLIMITED", None),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(limit: str, expected: float | None) -> None:
    assert hours(limit) == expected


def test_the_cost_counts_every_gpu_for_the_whole_time_limit() -> None:
    assert cost(10, ResourcePlan(2, 8, options={"time": "1:30:00"}, spare_nodes=1)) == (
        "10 runs × 3 nodes × 8 GPUs × 1:30:00 = at most 360.0 GPU hours, unless one queues itself again"
    )
    assert "3 runs × 1 node × 4:00:00 = at most 12.0 node hours (no GPUs)" in cost(3, ResourcePlan(1, 0, 2))
    assert "without a time limit" in cost(1, ResourcePlan(1, 1, options={"time": "INFINITE"}))


def fact(name: str, state: str, held_out: float | None, loss: float | None) -> dict[str, Any]:
    return {"experiment": name, "state": state, "held_out_loss": held_out, "loss": loss}


def test_complete_runs_are_ranked_by_their_held_out_loss_and_the_others_follow() -> None:
    facts = [
        fact("a", "complete", 2.0, 1.0),
        fact("b", "running", 1.0, 0.5),
        fact("c", "complete", 1.5, 1.9),
        fact("d", "complete", None, 0.1),
        fact("e", "rank crash", None, None),
    ]

    by, runs = ranking(facts)

    assert by == "held_out_loss"
    assert [(run["experiment"], run["rank"]) for run in runs] == [
        ("c", 1),
        ("a", 2),
        ("d", None),
        ("b", None),
        ("e", None),
    ]


def test_without_any_held_out_loss_the_last_steps_loss_ranks() -> None:
    by, runs = ranking([fact("a", "complete", None, 2.0), fact("b", "complete", None, 1.0)])

    assert by == "loss"
    assert [run["experiment"] for run in runs] == ["b", "a"]


def test_where_no_run_is_complete_none_is_called_the_best() -> None:
    steps: dict[str, Any] = {
        "step": 1,
        "total_steps": None,
        "tokens_per_second": None,
        "values": {},
        "run_dir": "/out/s/a",
    }
    by, runs = ranking([{**fact("a", "running", None, 2.0), **steps}])

    assert ranking_lines("s", [], by, runs)[-1] == "s by loss: 1 running"


def test_a_sweep_that_grows_keeps_every_run_in_its_place() -> None:
    def one(name: str, word: str) -> Element:
        return Element(name, {"seed": name}, [word], [word])

    before = [one("0", "old"), one("5", "old")]

    assert extended(before, [one("3", "new"), one("5", "new")]) == [one("0", "old"), one("5", "new"), one("3", "new")]


def test_what_is_not_submitted_again_stays_as_it_was_asked_for(tmp_path: Path) -> None:
    def asked(word: str, *names: str) -> Sweep:
        return Sweep(tmp_path, [], "/", [Element(name, {"seed": name}, [word], [word]) for name in names])

    with written(asked("old", "0", "1")):
        now = others_unchanged(asked("new", "0", "1", "2"), chosen=[1, 2])

    assert [element.launch for element in now.elements] == [["old"], ["new"], ["new"]]


def test_a_sweeps_file_is_as_it_was_where_the_queue_refuses(tmp_path: Path) -> None:
    def grown(size: int) -> Sweep:
        return Sweep(tmp_path, [], "/", [Element(str(seed), {"seed": str(seed)}, [], []) for seed in range(size)])

    with pytest.raises(RequestError), written(grown(1)):
        raise RequestError("sbatch refused")
    assert list(tmp_path.iterdir()) == []
    with written(grown(1)):
        pass
    with pytest.raises(RequestError), written(grown(2)):
        raise RequestError("sbatch refused")

    assert read_sweep(tmp_path) == grown(1)
    assert (tmp_path / "sweep.json").stat().st_mode & 0o777 == 0o600


def test_a_sweeps_file_stays_where_its_array_may_be_queued(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [], "/", [Element("0", {"seed": "0"}, [], [])])

    with pytest.raises(MayBeQueued), written(sweep):
        raise MayBeQueued("sbatch has not answered")

    assert read_sweep(tmp_path) == sweep


def test_a_file_of_a_sweeps_name_is_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("something else\n")

    assert find_sweep("a", tmp_path / "outputs") is None


@pytest.fixture
def login_node(tmp_path: Path) -> str:
    """A PATH with Slurm's commands: arrays have at most 4 elements, and nothing may be submitted."""
    return stand_ins(tmp_path / "bin", sbatch="touch called", scontrol="echo 'MaxArraySize = 4'")


SMOKE = ["--preset", "smoke", "--max-steps", "2", "--max-eval-samples", "8", "--device", "cpu"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "wanted --grid OPTION=VALUES … for a new sweep, or the name of one"),
        (["base"], "no sweep base, neither here nor in"),
        (["--grid", "lr=1", "--wait"], "--wait is for one job"),
        (["--grid", "lr=1", "--prepare-first"], "--prepare-first is for one run"),
        (["--grid", "lr=1", "--resume"], "--resume and --json are for a sweep that was submitted"),
        (["base", "--grid", "lr=1"], "--grid beside the name of a sweep: give its whole command again"),
        (["base", "--", "--lr", "1"], "arguments beside the name of a sweep"),
        (["--grid", "seed=0..4", "--", *SMOKE], "--grid makes 5 runs, an array of this Slurm has at most 4"),
        (["--grid", "bogus=1", "--", *SMOKE], "unknown option --bogus"),
        (["--grid", "lr=1e-4,-1", "--", *SMOKE], "--lr -1"),
        (["--grid", "lr=1", "--limit", "0"], "argument --limit: given '0', wanted a whole number, 1 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_sweep_is_one_line_and_nothing_is_submitted(
    arguments: list[str], message: str, login_node: str, tmp_path: Path
) -> None:
    done = sweep(*arguments, cwd=tmp_path, PATH=login_node)

    assert (done.returncode, done.stderr.splitlines()[1:]) == (64, [])
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_dry_run_shows_the_runs_their_cost_and_the_array(login_node: str, tmp_path: Path) -> None:
    done = sweep(
        *["--grid", "lr=1e-4,3e-4", "seed=0..1", "--limit", "2", "--nodes", "1", "--gpus", "2", "--time", "30"],
        *["--dry-run", "--", "-e", "base", *SMOKE],
        cwd=tmp_path,
        PATH=login_node,
    )

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[3].split() == ["2", "3e-4", "0", "new", "lr=3e-4_seed=0"]
    assert lines[6] == "4 runs × 1 node × 2 GPUs × 0:30:00 = at most 4.0 GPU hours, unless one queues itself again"
    assert f"#SBATCH --output={tmp_path}/outputs/base/%x-%A_%a.log" in lines
    assert "#SBATCH --array=0-3%2" in lines
    assert lines[-1] == f"exec {sys.executable} -u -m cluster.element {tmp_path}/outputs/base/sweep.json"
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_file_may_hold_the_grid_and_all_options(login_node: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(
        '[cluster]\nnodes = 1\ngpus = 1\ngrid = ["lr=1e-4,3e-4"]\n[training]\nexperiment-name = "base"\nmax-steps = 7\n'
    )

    done = sweep("--config", "sweep.toml", "--dry-run", cwd=tmp_path, PATH=login_node)

    assert done.returncode == 0, done.stderr
    assert "2 runs × 1 node × 1 GPU × 4:00:00 = at most 8.0 GPU hours" in done.stdout
    assert f"{tmp_path}/outputs/base/sweep.json" in done.stdout


def test_a_sweep_does_not_take_the_place_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "outputs/base").mkdir(parents=True)
    (tmp_path / "outputs/base/run.json").write_text('{"attempts": []}')

    done = sweep("--cluster", "local", "--grid", "lr=1", "--", "-e", "base", *SMOKE, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (64, "")
    assert "outputs/base is a run's: choose another --experiment-name for the sweep" in done.stderr


FAILS_ONCE = """
import json, os, sys
[value] = [word.partition("=")[2] for word in sys.argv if word.startswith("--width=")]
open(f"began-{value}", "a").write("x")
with open(os.environ["CLUSTER_RUN_DIR"] + "/metrics.jsonl", "a") as file:
    print(json.dumps({"step": 1, "loss": 3.0 - int(value), "tokens_per_second": 10.0}), file=file)
sys.exit(5 if value == "2" and not os.path.exists("mended") else 0)
"""


def test_an_element_runs_in_its_array_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps({"arguments": [], "directory": str(tmp_path), "elements": []}))
    tmp_path.chmod(0o700)

    with pytest.raises(RequestError, match="this is for the batch body of a sweep's job array"):
        element.main([str(file)])
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(RequestError, match=r"sweep\.json has no element 3: this job was submitted with another one$"):
        element.main([str(file)])


def test_a_sweep_is_resumed_from_where_it_was_given_and_by_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s/sweep.json").write_text('{"arguments": [], "directory": "/no/such/place", "elements": []}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/sweep.json").write_text('{"elements": [{}]}')

    with pytest.raises(RequestError, match="was submitted in /no/such/place: that is no directory any more"):
        main([str(tmp_path / "s"), "--resume"])
    with pytest.raises(LauncherError, match=r"broken/sweep\.json cannot be read"):
        main([str(tmp_path / "broken")])


def test_without_slurm_the_runs_follow_each_other_and_only_what_failed_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS_ONCE)
    command = ["--cluster", "local", "--grid", "width=1..2", "--experiment-name", "s", "--program"]
    program = ["--", "python", "fails.py"]

    first = sweep(*command, *program, cwd=tmp_path)
    listed = sweep("s", "--json", cwd=tmp_path)
    (tmp_path / "mended").touch()
    again = sweep("s", "--resume", cwd=tmp_path)
    nothing = sweep(*command, *program, cwd=tmp_path)
    other = sweep(*command[:2], "--grid", "depth=1", *command[4:], *program, cwd=tmp_path)

    assert first.returncode == 5
    assert first.stdout.splitlines()[-1] == "next: python -m cluster sweep s --resume"
    runs = json.loads(listed.stdout)["runs"]
    assert [(run["experiment"], run["state"], run["rank"]) for run in runs] == [
        ("width=1", "complete", 1),
        ("width=2", "rank crash", None),
    ]
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"best: {tmp_path}/outputs/s/width=2" in again.stdout
    assert [(tmp_path / f"began-{value}").read_text() for value in (1, 2)] == ["x", "xx"]
    assert nothing.stdout.splitlines()[-1] == "nothing to submit: all are complete or under way"
    assert "is a sweep over width: choose another --experiment-name for this one" in other.stderr


STOPS_ITS_LAUNCHER = """
import os, signal, time
open("began", "a").write("x")
launcher = open(os.environ["CLUSTER_RUN_DIR"] + "/launcher.lock").read().split()[1]
os.kill(int(launcher), signal.SIGTERM)
time.sleep(600)
"""


def test_without_slurm_a_run_that_is_stopped_is_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "stops.py").write_text(STOPS_ITS_LAUNCHER)
    command = ["--cluster", "local", "--grid", "width=1..2", "--experiment-name", "s", "--program"]

    done = sweep(*command, "--", "python", "stops.py", cwd=tmp_path)

    assert done.returncode == 143, done.stdout + done.stderr
    assert (tmp_path / "began").read_text() == "x"


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_an_array_of_a_real_slurm_resumes_only_what_failed_and_is_cancelled_as_a_whole(
    slurm: SlurmLab, mpi: Mpi, tmp_path: Path
) -> None:
    (tmp_path / "fails.py").write_text(FAILS_ONCE)
    environ = {"PATH": f"{mpi.mpirun.parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    more = ["--limit", "3", "--nodes", "1", "--ranks-per-node", "1", "--experiment-name", "s", "--program"]

    def cluster(*arguments: str) -> str:
        return str(slurm.run("ctl", [sys.executable, "-m", "cluster", *arguments], cwd=tmp_path, env=environ).stdout)

    def runs() -> dict[str, Any]:
        return {run["experiment"]: run for run in json.loads(cluster("sweep", "s", "--json"))["runs"]}

    def job_of(said: str) -> str:
        return said.partition("job ")[2].split()[0]

    held = job_of(cluster("sweep", "--grid", "width=1..3", *more, "--sbatch", "hold", "--", "python", "fails.py"))
    queued = runs()
    slurm.run("ctl", ["scontrol", "release", held])
    wait_until(lambda: {run["state"] for run in runs().values()} == {"complete", "rank crash"})
    failed = runs()
    (tmp_path / "mended").touch()
    resumed = cluster("sweep", "s", "--resume")
    slurm.run("ctl", ["scontrol", "release", job_of(resumed)])
    wait_until(lambda: {run["state"] for run in runs().values()} == {"complete"})
    cluster("sweep", "--grid", "width=4..5", *more, "--sbatch", "hold", "--", "python", "fails.py")
    cancelled = cluster("cancel", "s", "--json")
    over = runs()

    assert [(run["state"], run["detail"], run["job_id"]) for run in queued.values()] == [
        ("queued", "JobHeldUser", f"{held}_{index}") for index in range(3)
    ]
    assert {name: run["state"] for name, run in failed.items()} == {
        "width=1": "complete",
        "width=2": "rank crash",
        "width=3": "complete",
    }
    assert "1 run × 1 node × 4:00:00 = at most 4.0 node hours" in resumed
    assert [(tmp_path / f"began-{value}").read_text() for value in (1, 2, 3)] == ["x", "xx", "x"]
    log = tmp_path / f"outputs/s/width=2/width=2-{failed['width=2']['job_id']}.log"
    assert "── rank crash · exit status 5" in log.read_text()
    assert {run["experiment"]: run for run in json.loads(cancelled)["runs"]} == over
    assert [over[f"width={value}"]["state"] for value in (3, 4, 5)] == ["complete", "cancelled", "cancelled"]
