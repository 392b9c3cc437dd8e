"""The front end as a user types it: what it prints, what it refuses, and that it leaves nothing behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import slurm
from cluster.config_file import read_command_line
from cluster.errors import LauncherError, MayBeQueued, RequestError
from cluster.request import check_training, parser
from cluster.sbatch import check_with_slurm, made, patiently, queued
from cluster.trainer import TRAINER
from conftest import ROOT
from stand_ins import stand_ins


def submit(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.submit", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
    )


@pytest.fixture
def no_slurm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH without any sbatch."""
    empty = tmp_path_factory.mktemp("bin")
    (empty / "sh").symlink_to("/bin/sh")
    return str(empty)


@pytest.fixture
def login_node(tmp_path: Path) -> str:
    """A PATH with an sbatch that must not be called."""
    return stand_ins(tmp_path / "bin", sbatch="touch called")


SBATCH = """\
# As sbatch answers: --test-only says nothing, --parsable takes the script from its input, submitit gives a file.
cd {folder}
[ "$1" = --test-only ] && exit 0
ls called.* 2>/dev/null | wc -l > last; job=$((11 + $(cat last)))
case $1 in
    --parsable) cat > called.$job; printenv > environ.$job; echo $job ;;
    *) cp "$1" called.$job; echo "Submitted batch job $job" ;;
esac
"""


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """The folder of a stand-in for Slurm: `called.<job id>` is the script of a job, `cancelled` the ids of scancel."""
    folder = tmp_path / "slurm"
    stand_ins(folder, sbatch=SBATCH.format(folder=folder), scancel=f"echo $1 >> {folder}/cancelled")
    return folder


PREPARED = ["--nodes", "2", "--gpus", "4", "--partition", "a100", "--account", "lab", "--no-check", "--prepare-first"]


def test_the_job_that_prepares_goes_first_without_gpus_and_the_training_waits_for_it(
    queue: Path, tmp_path: Path
) -> None:
    done = submit(
        *[*PREPARED, "--prepare-sbatch", "partition=cpu", "--sbatch", "dependency=singleton", "-x", "HF_HOME=/hf"],
        *["--", "-e", "a", "--dataset-name", "d.jsonl"],
        cwd=tmp_path,
        PATH=f"{queue}:/usr/bin:/bin",
    )

    assert done.returncode == 0, done.stderr
    assert (queue / "called.11").read_text() == (
        "#!/bin/bash\n#SBATCH --job-name=a-prepare\n#SBATCH --nodes=1\n#SBATCH --ntasks=1\n"
        "#SBATCH --cpus-per-task=4\n#SBATCH --time=04:00:00\n"
        f"#SBATCH --output={tmp_path}/outputs/a/%x-%j.log\n#SBATCH --partition=cpu\n#SBATCH --account=lab\n\n"
        f"exec {sys.executable} -m training.prepare -e a --dataset-name d.jsonl --output-dir {tmp_path}/outputs\n"
    )
    assert "HF_HOME=/hf\n" in (queue / "environ.11").read_text()
    training = (queue / "called.12").read_text()
    assert "#SBATCH --gpus-per-node=4\n#SBATCH --partition=a100\n#SBATCH --account=lab\n" in training
    assert "#SBATCH --dependency=singleton,afterok:11\n#SBATCH --kill-on-invalid-dep=yes\n" in training
    assert "prepare        11\njob            12\n" in done.stdout


def test_a_dry_run_shows_both_scripts_as_they_are_then_submitted(queue: Path, tmp_path: Path) -> None:
    run = [*PREPARED, "--sbatch", "reservation=r1"]
    dry = submit(*run, "--dry-run", "--", "-e", "a", cwd=tmp_path, PATH=f"{queue}:/usr/bin:/bin")
    assert not (tmp_path / "outputs").exists()
    submit(*run, "--", "-e", "a", cwd=tmp_path, PATH=f"{queue}:/usr/bin:/bin")

    both = [(queue / f"called.{job}").read_text() for job in (11, 12)]
    assert dry.stdout.replace("JOB_ID_OF_THE_FIRST", "11").startswith("\n".join(both)), dry.stderr


def test_what_was_submitted_and_submitted_again_can_be_had_as_one_json_object(queue: Path, tmp_path: Path) -> None:
    place: dict[str, str] = {"PATH": f"{queue}:/usr/bin:/bin"}
    run_dir = tmp_path / "outputs/a"
    first = submit(*PREPARED, "--json", "--", "-e", "a", cwd=tmp_path, **place)
    request = json.loads((run_dir / "request.json").read_text())
    (run_dir / "run.json").write_text('{"experiment": "a", "attempts": []}')
    (queue / "squeue").symlink_to("/bin/true")
    again = subprocess.run(
        [sys.executable, "-m", "cluster", "resubmit", "a", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **place},
    )

    assert json.loads(first.stdout) == {
        "experiment": "a",
        "run_dir": str(run_dir),
        "job_id": "12",
        "prepare_job_id": "11",
        "plan": "2 nodes × 4 GPUs = 8 ranks",
        "ranks": 8,
        "log": f"{run_dir}/a-12.log",
    }, first.stderr
    assert request["arguments"] == [*PREPARED, "--", "-e", "a"]
    assert json.loads(again.stdout)["job_id"] == "14", again.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--dry-run"], "--json is one object"),
        (["--follow"], "--json is one object"),
        (["--cluster", "local"], "--json tells of a job, and this run is none"),
    ],
    ids=str,
)
def test_where_json_has_no_meaning_it_is_refused(given: list[str], words: str, tmp_path: Path) -> None:
    done = submit("--json", *given, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith(f"error: {words}")


def test_a_training_that_sbatch_refuses_takes_the_job_before_it_out_of_the_queue(queue: Path, tmp_path: Path) -> None:
    wrapper = (queue / "sbatch").read_text().replace("*) cp", "*) echo 'sbatch: error: no' >&2; exit 1; cp")
    (queue / "sbatch").write_text(wrapper)

    done = submit(*PREPARED, "--", "-e", "a", cwd=tmp_path, PATH=f"{queue}:/usr/bin:/bin")

    assert done.returncode == 64
    assert done.stderr.splitlines()[-1].startswith("error: sbatch refused: ")  # after what submitit lets through
    assert (queue / "cancelled").read_text() == "11\n"
    assert not (tmp_path / "outputs").exists()


def test_without_slurm_the_tokens_are_made_here_before_the_ranks_start(no_slurm: str, tmp_path: Path) -> None:
    run = ["--preset", "smoke", "--max-steps", "1", "--device", "cpu"]
    local = ["--cluster", "local", "--prepare-first", "--experiment-name", "p"]
    dry = submit(*local, "--dry-run", "--", *run, cwd=tmp_path)
    done = submit(*local, "--no-check", "--", *run, cwd=tmp_path)

    assert f"# first, here\n{sys.executable} -m training.prepare --preset smoke" in dry.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.index("  made, in ") < done.stdout.index("1 node × 1 rank = 1 rank")


def test_where_the_tokens_cannot_be_made_no_rank_is_started(tmp_path: Path) -> None:
    done = submit("--cluster", "local", "--prepare-first", "--no-check", "--", "--dataset-name", "no.csv", cwd=tmp_path)

    assert done.returncode == 64
    assert done.stderr.startswith("error: --")
    assert "attempt" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prepare-first", "--program", "--", "true"], "--prepare-first makes the tokens of training.train_llm"),
        (["--prepare-sbatch", "mem=9G"], "--prepare-sbatch is for the job of --prepare-first: give that too"),
        (
            ["--prepare-first", "--prepare-sbatch", "nodes=2"],
            "--prepare-sbatch nodes: that job is one task on one node",
        ),
        (["--prepare-first", "--prepare-sbatch", "mem=9\nx"], "has a line break or control character"),
    ],
)
def test_a_preparation_that_cannot_be_is_one_line(
    arguments: list[str], message: str, login_node: str, tmp_path: Path
) -> None:
    done = submit(*arguments, cwd=tmp_path, PATH=login_node)

    assert (done.returncode, len(done.stderr.splitlines())) == (64, 1)
    assert message in done.stderr
    assert not (tmp_path / "called").exists()


def test_a_dry_run_shows_script_hostfile_command_and_rank_table(login_node: str, tmp_path: Path) -> None:
    done = submit(
        *["--nodes", "2", "--gpus", "8", "--partition", "a100", "--sbatch", "reservation=r1", "--dry-run"],
        *["--output-dir", str(tmp_path / "out"), "--", "--experiment-name", "a", "--lr", "1e-4"],
        cwd=tmp_path,
        PATH=login_node,
    )

    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n" in out
    assert "#SBATCH --partition=a100\n#SBATCH --reservation=r1\n" in out
    assert "# plan: 2 nodes × 8 GPUs = 16 ranks\n" in out
    assert "node1 slots=8\nnode2 slots=8\n" in out
    assert f"-m cluster.rank {tmp_path}/out/a/attempt-0001/plan.json -- " in out
    assert f"-m training.train_llm --experiment-name a --lr 1e-4 --output-dir {tmp_path}/out\n" in out
    assert out.splitlines()[-1].split() == ["15", "1", "node2", "7", "7"]
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "called").exists()


def test_a_dry_run_without_slurm_shows_what_mpirun_would_start_here(no_slurm: str, tmp_path: Path) -> None:
    local = ["--cluster", "local", "--nodes", "2", "--ranks-per-node", "2", "--dry-run", "--", "-e", "a"]
    done = submit(*local, cwd=tmp_path, PATH=no_slurm)

    assert done.returncode == 0, done.stderr
    assert f"-m cluster.rank {tmp_path}/outputs/a/attempt-0001/plan.json -- " in done.stdout
    assert done.stdout.splitlines()[-1].split()[0] == "3"
    assert "SBATCH" not in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_without_sbatch_one_line_says_that_it_runs_here(no_slurm: str, tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("import os; print('rank', os.environ['RANK'])\n")

    done = submit("--ranks-per-node", "2", "--program", "--", "python", "s.py", cwd=tmp_path, PATH=no_slurm)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no sbatch here: running on this machine")
    assert "rank 0\n── complete · exit status 0" in done.stdout


def test_simulated_nodes_have_their_own_node_ranks(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import os\nprint(*(os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'GROUP_RANK', 'WORLD_SIZE')))\n"
    )

    done = submit(
        *["--cluster", "local", "--nodes", "2", "--ranks-per-node", "2", "--program", "--", "python", "s.py"],
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    logs = tmp_path / "outputs/s/attempt-0001/logs"
    assert [(logs / f"rank-{rank}.log").read_text() for rank in range(4)] == [
        "0 0 0 4\n",
        "1 1 0 4\n",
        "2 0 1 4\n",
        "3 1 1 4\n",
    ]
    [attempt] = json.loads((tmp_path / "outputs/s/run.json").read_text())["attempts"]
    assert attempt["verdict"]["kind"] == "complete"


def test_a_request_without_gpus_is_one_rank_on_each_node_here_too(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("import os\nprint(os.environ['WORLD_SIZE'])\n")

    done = submit(
        *["--cluster", "local", "--nodes", "2", "--gpus", "0", "--program", "--", "python", "s.py"],
        cwd=tmp_path,
        CUDA_VISIBLE_DEVICES="0,1,2,3",
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/s/attempt-0001/logs/rank-1.log").read_text() == "2\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--dry-runn"], 64, "error: unknown option --dry-runn: did you mean --dry-run?"),
        (["--nodse=2"], 64, "error: unknown option --nodse: did you mean --nodes?"),
        (["train.py"], 64, "error: unknown option train.py: the program and its arguments stand after ' -- '"),
        (["--nodes", "0"], 64, "error: argument --nodes: given '0', wanted a whole number, 1 or more"),
        (["--nodes", "-1"], 64, "error: argument --nodes: "),
        (
            ["--gpus", "two"],
            64,
            "error: argument --gpus/--gpus-per-node: given 'two', wanted a whole number",
        ),
        (["--program"], 64, "error: no program: put it after ' -- '"),
        (["--program", "--", "python", "nowhere.py"], 64, "error: the script nowhere.py does not exist in "),
        (["--cluster", "slurm"], 70, "error: --cluster slurm, but there is no sbatch on PATH"),
        (["--gpus", "64"], 64, "error: --nodes 1 --gpus 64 asks for 64 GPUs, this machine has 0"),
        (["--hosts", "a:x"], 64, "error: cannot read the host 'a:x'"),
        (["--hosts", "a:8", "--nodes", "3"], 64, "error: --hosts names the nodes and their ranks: leave out --nodes"),
        (["--wdir", "/nowhere", "--program", "--", "true"], 64, "error: --wdir /nowhere is no directory"),
        (["--hosts", "a", "--hostfile", "b"], 64, "error: --hosts and --hostfile both name hosts"),
        (["--hostfile", "nowhere"], 64, "error: --hostfile nowhere: No such file or directory"),
        (["--", "--experiment-name", "../a"], 64, "error: experiment name '../a': wanted 1 to 128 letters"),
        (["--", "--config", "nowhere.toml"], 64, "error: --config nowhere.toml: No such file or directory"),
        (["--output-dir", "/proc/self/x"], 64, "error: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], status: int, message: str, no_slurm: str, tmp_path: Path
) -> None:
    done = submit(*arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="", PATH=no_slurm)

    assert done.returncode == status
    [line] = done.stderr.splitlines()
    assert line.startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["nodes=5", "output=/tmp/x", "--gpus-per-task=1", "array=0-3"])
def test_what_the_plan_is_made_from_cannot_be_said_behind_its_back(
    option: str, login_node: str, tmp_path: Path
) -> None:
    done = submit(f"--sbatch={option}", "--", "-e", "a", cwd=tmp_path, PATH=login_node)

    assert done.returncode == 64
    assert f"error: --sbatch {option.strip('-').partition('=')[0]}: use " in done.stderr
    assert not (tmp_path / "called").exists()


def test_a_resume_that_does_not_fit_is_refused_before_queueing(login_node: str, tmp_path: Path) -> None:
    run = ["--preset", "smoke", "--max-steps", "1", "--device", "cpu"]
    trained = submit("--cluster", "local", "--experiment-name", "b", "--", *run, cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout

    done = submit("--experiment-name", "b", "--", *run, "--seq-length", "32", cwd=tmp_path, PATH=login_node)

    assert done.returncode == 64
    assert "--seq-length" in done.stderr
    assert not (tmp_path / "called").exists()
    assert not (tmp_path / "outputs/b/attempt-0002").exists()


def test_sbatchs_options_have_no_meaning_here_and_one_line_says_so(tmp_path: Path) -> None:
    done = submit("--cluster", "local", "--time", "10", "--program", "--", "true", cwd=tmp_path)

    assert done.returncode == 0
    assert done.stdout.startswith("note: without Slurm --time has no meaning")


def test_a_reader_that_leaves_early_causes_no_traceback(login_node: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m cluster.submit --dry-run -- -e a | head -1"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": login_node, "PYTHONUNBUFFERED": "1"}

    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("#!/bin/bash\n", "")


def test_a_header_cannot_be_broken_by_an_option(login_node: str, tmp_path: Path) -> None:
    done = submit("--partition", "a\n#SBATCH --uid=0", "--", "-e", "a", cwd=tmp_path, PATH=login_node)

    assert done.returncode == 64
    assert "has a line break or control character" in done.stderr
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rat", "1"], "--learning-rate"),
        (["--preset", "demo", "--dataset-name", "nowhere.json"], "nowhere.json"),
        (["--preset", "demo", "--seq-length", "100000"], "100000"),
    ],
)
def test_the_trainers_own_arguments_are_checked_before_anything_is_queued(
    arguments: list[str], message: str, login_node: str, tmp_path: Path
) -> None:
    done = submit("--", *arguments, cwd=tmp_path, PATH=login_node, HF_HUB_OFFLINE="1")

    assert done.returncode == 64
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_the_trainers_arguments_are_checked_where_and_with_what_the_ranks_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins(tmp_path, python='echo "error: $PWD $HF_HOME $*" >&2; exit 64')
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    options, _, _ = read_command_line(parser(), ["--wdir", "data", "-x", "HF_HOME=/data/hf"])
    options.config = "run.toml"

    with pytest.raises(RequestError) as refused:
        check_training(options, [[f"{tmp_path}/python", "-m", TRAINER, "--dataset-name", "a.jsonl"]], 2)

    checked = f"-m training.check --ranks 2 --config {tmp_path}/run.toml --dataset-name a.jsonl"
    assert str(refused.value) == f"{tmp_path}/data /data/hf {checked}"


def refusing(*answers: str | None) -> Callable[[], str | None]:
    """Slurm's words, one after another."""
    left = iter(answers)
    return lambda: next(left)


DOWN = "sbatch: error: Unable to contact slurm controller (connect failure)"


def test_a_controller_that_is_down_for_a_while_is_waited_for_and_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "ASK_AGAIN_EVERY", 0.0)

    assert patiently(refusing(DOWN, DOWN, None)) is None
    assert capsys.readouterr().err == f"waiting for Slurm's controller ({DOWN})\n"
    monkeypatch.setattr(slurm, "CONTROLLER_BACK_WITHIN", 0.0)
    with pytest.raises(LauncherError, match=r"^Slurm's controller does not answer .*: try again when scontrol ping"):
        patiently(refusing(DOWN, DOWN, None))


def test_what_slurm_could_never_start_is_refused_unless_nodes_are_out_of_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never = (
        "echo 'sbatch: error: Batch job submission failed: Requested node configuration is not available' >&2; exit 1"
    )
    monkeypatch.setenv("PATH", stand_ins(tmp_path, sbatch=never, sinfo="echo n2"))
    check_with_slurm("#!/bin/sh\n")
    assert "(some nodes are down or drained: queued all the same)" in capsys.readouterr().err

    stand_ins(tmp_path, sinfo="")
    with pytest.raises(RequestError, match=r"^sbatch refused: .*Requested node configuration is not available"):
        check_with_slurm("#!/bin/sh\n")


def test_a_preparation_that_sbatch_refuses_leaves_nothing_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = "echo 'sbatch: error: invalid partition' >&2; exit 1"
    asked = f"echo $1 >> {tmp_path}/cancelled"
    monkeypatch.setenv("PATH", stand_ins(tmp_path, sbatch=refuses, scancel=asked))

    with pytest.raises(RequestError, match=r"^sbatch refused: sbatch: error: invalid partition$"):
        with queued("#!/bin/sh\n", dict(os.environ)):
            raise AssertionError("nothing follows")
    assert not (tmp_path / "cancelled").exists()


def test_an_sbatch_that_does_not_answer_may_have_queued_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "SECONDS", 0.2)
    monkeypatch.setenv("PATH", stand_ins(tmp_path, sbatch="exec sleep 60"))

    with pytest.raises(MayBeQueued, match=r"^sbatch has not answered .* Slurm may have the job: look by squeue --me"):
        with queued("#!/bin/sh\n", dict(os.environ)):
            raise AssertionError("nothing follows")


def test_after_an_error_a_directory_in_which_something_lies_stays(tmp_path: Path) -> None:
    def fails() -> None:
        (tmp_path / "out/kept").touch()
        raise OSError("full")

    with pytest.raises(OSError, match="full"), made(tmp_path / "out/a"):
        fails()

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]


def test_what_an_earlier_submission_left_stays_where_the_next_is_refused(queue: Path, tmp_path: Path) -> None:
    request = ["--nodes", "1", "--no-check", "--", "-e", "a"]
    first = submit(*request, cwd=tmp_path, PATH=f"{queue}:/usr/bin:/bin")
    before = sorted((tmp_path / "outputs/a/submitit").iterdir())
    stand_ins(queue, sbatch="[ $1 = --test-only ] && exit 0; echo 'sbatch: error: no' >&2; exit 1")

    again = submit(*request, cwd=tmp_path, PATH=f"{queue}:/usr/bin:/bin")

    assert (first.returncode, again.returncode) == (0, 64), first.stderr + again.stderr
    assert before
    assert sorted((tmp_path / "outputs/a/submitit").iterdir()) == before


def test_the_job_that_prepares_works_where_the_training_does(queue: Path, tmp_path: Path) -> None:
    dry = submit(
        *PREPARED, "--wdir", str(tmp_path), "--dry-run", "--", "-e", "a", cwd=tmp_path, PATH=f"{queue}:/usr/bin:/bin"
    )

    assert f"#SBATCH --chdir={tmp_path}\n" in dry.stdout, dry.stderr
