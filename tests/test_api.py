"""`from cluster import submit, Run`: what the command line does, from Python."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import RequestError, Run, submit
from cluster.keywords import SubmitOptions, command_words
from cluster.lock import only_launcher_of
from cluster.request import parser
from cluster.request_file import record_request
from conftest import ROOT, Mpi
from slurm_lab import SlurmLab
from stand_ins import stand_ins
from waiting import wait_until

ONLY_WORDS = {"help", "dry_run", "wait", "follow", "json", "program", "training.NAME"}
"""Options of the command line that are no keywords: a function has its own ways for them."""


@pytest.mark.parametrize(
    "imports",
    [
        "from cluster import submit",
        "import cluster; submit = cluster.submit",
        "import cluster.submit; from cluster import submit",
        "from cluster import submit; import cluster.submit; assert submit is cluster.submit",
        "from cluster.submit import main; from cluster import submit",
        "from cluster.submit import submit",
    ],
)
def test_submit_is_the_function_whatever_was_imported_first(imports: str) -> None:
    wrong = "try: submit(nodse=2)\nexcept cluster.RequestError as error: print(error)"
    code = f"{imports}\nimport cluster\n{wrong}"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert done.stdout == "unknown option nodse: did you mean nodes?\n", done.stderr


def test_importing_the_package_imports_nothing() -> None:
    code = (
        "import sys; import cluster; print([name for name in sys.modules if name.startswith(('cluster.', 'typing'))])"
    )

    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert done.stdout == "[]\n"


TYPED = """\
from cluster import Run, submit
run: Run = submit(["-e", "a"], nodes=2, time="10", sbatch={"reservation": "x"})
loss: float = run.metrics()[-1]["loss"]
status: int = Run("a", output_dir="runs").wait(timeout=3)
submit(program=["python", "a.py"], nodse=2)
"""


def test_a_type_checker_knows_the_options(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(TYPED)
    command = ["mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", "--no-pretty", "user.py"]

    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=tmp_path, env={"MYPYPATH": str(ROOT)}
    )

    assert [line.partition("user.py:")[2] for line in done.stdout.splitlines() if ": error" in line] == [
        '5: error: Unexpected keyword argument "nodse" for "submit"; did you mean "nodes"?  [call-arg]'
    ]


def test_every_option_of_the_command_line_is_a_keyword() -> None:
    assert {action.dest for action in parser()._actions} - ONLY_WORDS == set(SubmitOptions.__annotations__)


def test_keywords_become_the_words_that_mean_them() -> None:
    given: SubmitOptions = {
        "nodes": 2,
        "gpus": 0,
        "cluster": "local",
        "no_check": True,
        "prepare_first": False,
        "forward": {"HF_HOME": None, "A": "-1"},
        "mpirun_arg": ["--display-map"],
        "sbatch": {"reservation": "x", "exclusive": None},
        "output_dir": Path("/runs"),
    }

    understood = vars(parser().parse_options(command_words(parser(), given)))

    assert {name: understood[name] for name in given} == {
        **given,
        "forward": [("HF_HOME", None), ("A", "-1")],
        "sbatch": ["reservation=x", "exclusive"],
        "output_dir": "/runs",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, r"^argument --nodes: given '0', wanted a whole number, 1 or more$"),
        ({"cluster": "pbs"}, "argument --cluster: invalid choice: 'pbs'"),
        ({"arguments": ["-e", "../a"]}, r"experiment name '\.\./a'"),
        ({"arguments": ["--lr", "0"], "program": ["true"]}, "give the program's own in program"),
        ({"program": ["python", "nowhere.py"]}, "the script nowhere.py does not exist in"),
        ({"arguments": ["--max-steps", "none"], "cluster": "local"}, "--max-steps"),
    ],
    ids=str,
)
def test_a_wrong_request_is_an_exception_and_writes_nothing(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(RequestError, match=message):
        submit(**options)  # type: ignore[arg-type]

    assert list(tmp_path.iterdir()) == []


METRICS = """
import json, os, sys, time
attempt = os.environ["CLUSTER_ATTEMPT"]
with open("outputs/a/metrics.jsonl", "a") as file:
    print(json.dumps({"step": int(attempt), "loss": 1.5}), file=file)
while not os.path.exists(f"go-{attempt}"):
    time.sleep(0.05)
sys.exit(3 if attempt == "1" else 0)
"""


def test_a_local_run_goes_on_in_the_background_and_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.py").write_text(METRICS)

    run = submit(program=["python", "metrics.py"], cluster="local", ranks_per_node=1, experiment_name="a")
    with pytest.raises(TimeoutError, match=r"^a is running after 0 s$"):
        run.wait(timeout=0)
    with pytest.raises(RequestError, match="a is running: it goes on by itself"):
        run.resubmit()
    with pytest.raises(RequestError, match=r"outputs/a is in use by process \d+"):
        submit(program=["python", "metrics.py"], cluster="local", experiment_name="a")
    (tmp_path / "go-1").touch()
    failed = run.wait()
    monkeypatch.chdir("/")
    again = Run(run.directory).resubmit()
    wait_until(lambda: len(again.metrics()) == 2)
    stopped = again.cancel()

    assert (run.name, run.job_id, failed) == ("a", None, 3)
    assert str(again.launcher and again.launcher.pid) in stopped
    assert again.wait() == 143
    assert again.state.name == "cancelled"
    assert [attempt["verdict"]["status"] for attempt in again.attempts] == [3, 143]
    assert again.metrics() == [{"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.5}]
    assert [one.directory for one in Run.all(tmp_path / "outputs")] == [run.directory]


USES = """
import json, time
from cluster import Run, submit

run = submit(program=["python", "metrics.py"], nodes=1, ranks_per_node=1, experiment_name="a")
open("go-1", "w").close()
first = run.wait()
again = Run(run.job_id).resubmit()
while len(again.metrics()) < 2:
    time.sleep(0.1)
said = again.cancel()
print(json.dumps([first, run.job_id, said, str(run.state), again.wait(), len(again.metrics()), run.log.name]))
"""


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_a_job_is_submitted_waited_for_and_cancelled_from_python(slurm: SlurmLab, mpi: Mpi, tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text(METRICS)
    (tmp_path / "uses.py").write_text(USES)
    environ = {"PATH": f"{mpi.mpirun.parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}

    done = slurm.run("ctl", [sys.executable, "uses.py"], cwd=tmp_path, env=environ)

    first, job, said, state, status, rows, log = json.loads(done.stdout.splitlines()[-1])
    assert (first, said, state, rows) == (3, f"job {job} cancelled", "cancelled", 2)
    assert (status, log) == (143, f"a-{job}.log")


def test_a_run_is_shown_by_its_directory_and_an_ended_job_by_slurms_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 'echo "JobId=12 JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0"'
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", scontrol=failed, squeue="exit 1", sacct="exit 1"))
    record_request(tmp_path / "a", [], "12")

    run = Run(tmp_path / "a")

    assert repr(run) == f"Run('{tmp_path}/a')"
    assert run.wait() == 3


@pytest.mark.parametrize("status", [0, 3])
def test_a_run_in_an_allocation_that_lives_on_is_waited_for_to_its_own_end(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = "echo '12|RUNNING|None|2026-01-31T12:00:00|gpu|1|12|N/A'"
    scontrol = 'echo "JobId=12 JobState=RUNNING ExitCode=0:0"'
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", squeue=squeue, scontrol=scontrol))
    begun: dict[str, Any] = {"attempt": 1, "started": 1_790_000_000.0, "job_id": "12"}
    ended = {**begun, "verdict": {"kind": "rank crash" if status else "complete", "status": status, "next": None}}
    run_file = tmp_path / "a/run.json"

    with only_launcher_of(tmp_path / "a"):
        run_file.write_text(json.dumps({"experiment": "a", "attempts": [begun]}))
        run = Run(tmp_path / "a")
        with pytest.raises(TimeoutError):
            run.wait(timeout=0)
        run_file.write_text(json.dumps({"experiment": "a", "attempts": [ended]}))

        def let_go(seconds: float) -> None:
            (tmp_path / "a/launcher.lock").unlink(missing_ok=True)

        monkeypatch.setattr("time.sleep", let_go)
        assert run.wait(timeout=60) == status


def test_a_run_whose_directory_of_submission_has_gone_is_not_submitted_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    request = {"arguments": [], "directory": "/no/such/place", "submitted": 1.0, "job_id": None}
    (tmp_path / "a/request.json").write_text(json.dumps(request))

    with pytest.raises(RequestError, match=r"^a was submitted in /no/such/place: that is no directory any more$"):
        Run(tmp_path / "a").resubmit()


def test_a_run_without_a_job_has_the_status_of_its_last_verdict(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    attempt = {"attempt": 1, "started": 1.0, "seconds": 1.0, "verdict": {"kind": "no progress", "status": 73}}
    (tmp_path / "a/run.json").write_text(json.dumps({"experiment": "a", "attempts": [attempt]}))

    assert Run(tmp_path / "a").wait() == 73
