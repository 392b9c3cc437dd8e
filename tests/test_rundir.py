"""Names and layout of the run directory, and run.json."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from cluster.errors import LauncherError, RequestError
from cluster.lock import only_launcher_of
from cluster.run_file import (
    close_unfinished_attempts,
    exclude_host,
    put_damaged_aside,
    read_json,
    read_run,
    record_attempt,
)
from cluster.rundir import check_experiment_name, create_directories, next_attempt, run_directory
from cluster.trainer import name_run_directory

TRAIN = ["/venv/bin/python", "-m", "training.train_llm"]


@pytest.mark.parametrize("name", ["a", "gpt2-alpaca", "lr=1e-4", "run_2.1+x@y", "9"])
def test_ordinary_names_are_accepted(name: str) -> None:
    assert check_experiment_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a..b", "-rf", ".hidden", "a b", "a\nb", "a\x1b[0m", "é", "x" * 129]
)
def test_names_that_could_leave_the_directory_or_break_a_header_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="wanted 1 to 128 letters"):
        check_experiment_name(name)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--experiment-name", "a"], "a"),
        (["--experiment-name=a"], "a"),
        (["--experiment_name", "a"], "a"),
        (["-e", "a"], "a"),
        (["--experiment-name", "a", "--lr", "1", "--experiment-name", "b"], "b"),
        ([], "job"),
    ],
)
def test_the_trainers_own_experiment_name_is_the_launchers_too(arguments: list[str], name: str) -> None:
    assert run_directory([*TRAIN, *arguments], None, None, "job").name == name


@pytest.mark.parametrize("flag", ["--output-dir", "--save-dir"])
def test_the_trainers_output_dir_is_the_launchers_too(flag: str) -> None:
    assert run_directory([*TRAIN, flag, "/out", "-e", "a"], None, None, None) == Path("/out/a")


def test_names_may_stand_in_the_trainers_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('experiment-name = "from-file"\noutput_dir = "/out"\n')

    assert run_directory([*TRAIN, "--config", str(file)], None, None, None) == Path("/out/from-file")
    assert run_directory([*TRAIN, "--config", str(file), "-e", "b"], None, None, None) == Path("/out/b")
    file.write_text('[cluster]\nexperiment-name = "c"\n[training]\nexperiment-name = "from-table"\n')
    assert run_directory([*TRAIN, "--config", str(file), "--save-dir", "/out"], None, None, None) == Path(
        "/out/from-table"
    )


def test_the_trainers_toml_file_is_read_where_the_trainer_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("here", "mine"), ("there", "theirs")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "c.toml").write_text(f'experiment-name = "{name}"')
    monkeypatch.chdir(tmp_path / "here")
    program = [*TRAIN, "--config", "c.toml"]

    assert run_directory(program, None, None, None, "../there") == tmp_path / "here/outputs/theirs"
    assert run_directory(program, None, None, None) == tmp_path / "here/outputs/mine"


def test_launcher_and_trainer_must_not_be_told_different_names() -> None:
    with pytest.raises(RequestError, match="--experiment-name is a for the launcher and b for the trainer"):
        run_directory([*TRAIN, "-e", "b"], "a", None, None)


def test_another_programs_arguments_are_its_own() -> None:
    program = ["/venv/bin/python", "my_script.py", "--output-dir", "/elsewhere", "-e", "x"]

    assert run_directory(program, None, None, None) == Path.cwd() / "outputs/my_script"


def test_attempts_are_numbered_on_and_private(tmp_path: Path) -> None:
    with only_launcher_of(tmp_path / "out/a"):
        first = next_attempt(tmp_path / "out/a", None)
    create_directories(first)
    second = next_attempt(tmp_path / "out/a", None)
    create_directories(second)

    assert (first.number, second.number) == (1, 2)
    assert stat.S_IMODE(second.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == 0o700
    assert second.log_of(3) == tmp_path / "out/a/attempt-0002/logs/rank-3.log"


def test_a_run_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(RequestError, match=r"cannot be written .*choose another --output-dir"),
        only_launcher_of(tmp_path / "file/a"),
    ):
        pass


def test_two_launchers_cannot_hold_one_run_directory(tmp_path: Path) -> None:
    with (
        only_launcher_of(tmp_path / "a"),
        pytest.raises(RequestError, match=rf"a is in use by process {os.getpid()} on .*another --experiment-name"),
        only_launcher_of(tmp_path / "a"),
    ):
        pass
    with only_launcher_of(tmp_path / "a"):
        assert "process" in (tmp_path / "a/launcher.lock").read_text()


def test_other_names_do_not_disturb_the_numbering(tmp_path: Path) -> None:
    for name in ("attempt-0003", "attempt-0007-old", "attempt-x"):
        (tmp_path / name).mkdir()

    assert next_attempt(tmp_path, None).number == 4


def test_the_trainer_is_told_the_launchers_run_directory_in_full() -> None:
    told = name_run_directory([*TRAIN, "--lr", "1"], Path("/out/a"))

    assert told == [*TRAIN, "--lr", "1", "--experiment-name", "a", "--output-dir", "/out"]
    assert name_run_directory([*TRAIN, "-e", "a"], Path("/out/a")) == [*TRAIN, "-e", "a", "--output-dir", "/out"]
    assert name_run_directory(["python", "x.py"], Path("/out/a")) == ["python", "x.py"]
    bench = ["python", "-m", "training.bench"]
    assert name_run_directory(bench, Path("/out/a")) == bench


def test_run_json_keeps_every_attempt_and_its_verdict(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first, second = (next_attempt(tmp_path / "a", None)._replace(number=number) for number in (1, 2))
    create_directories(first)

    record_attempt(first, {"started": 1.0})
    record_attempt(second, {"started": 2.0})
    record_attempt(first, {"verdict": {"kind": "complete"}})

    assert json.loads((tmp_path / "a/run.json").read_text()) == {
        "experiment": "a",
        "excluded_hosts": [],
        "attempts": [
            {"attempt": 1, "started": 1.0, "verdict": {"kind": "complete"}},
            {"attempt": 2, "started": 2.0},
        ],
    }


def test_a_lock_of_an_earlier_start_of_this_job_is_waited_for_and_then_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("cluster.lock.LEASE", 0.2)
    with only_launcher_of(tmp_path / "run"):
        with pytest.raises(RequestError, match="is in use by process"):
            with only_launcher_of(tmp_path / "run"):
                pass
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with only_launcher_of(tmp_path / "run"):
            assert "job 7, start 1" in (tmp_path / "run/launcher.lock").read_text()


def test_a_damaged_run_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"attempts": [')

    put_damaged_aside(tmp_path)

    assert read_run(tmp_path)["attempts"] == []
    assert (tmp_path / "run.json.damaged").read_text() == '{"attempts": ['


def unfinished(tmp_path: Path) -> None:
    attempt = next_attempt(tmp_path, None)
    create_directories(attempt)
    record_attempt(attempt, {"started": 1.0, "job_id": "7", "hosts": [["n1", 2, 0, 4]]})


def test_an_attempt_whose_launcher_was_killed_gets_its_verdict_from_the_next_one(tmp_path: Path) -> None:
    unfinished(tmp_path)

    close_unfinished_attempts(tmp_path, {"job_id": "8", "restart_count": "1"})

    [attempt] = read_run(tmp_path)["attempts"]
    assert (attempt["verdict"]["kind"], attempt["verdict"]["host"]) == ("launcher failed", None)
    assert attempt["accounting"]["lost"] == attempt["seconds"] == attempt["ended"] - 1.0


def test_a_job_that_slurm_queued_again_without_its_launcher_has_lost_the_first_host(tmp_path: Path) -> None:
    unfinished(tmp_path)

    close_unfinished_attempts(tmp_path, {"job_id": "7", "restart_count": "1"})

    [attempt] = read_run(tmp_path)["attempts"]
    assert (attempt["verdict"]["kind"], attempt["verdict"]["host"]) == ("node lost", "n1")


@pytest.mark.parametrize("own_job", [{"job_id": "7"}, {}], ids=["again in the shell of salloc", "away from Slurm"])
def test_a_launcher_that_was_killed_in_a_job_that_goes_on_has_lost_no_host(
    own_job: dict[str, str], tmp_path: Path
) -> None:
    unfinished(tmp_path)

    close_unfinished_attempts(tmp_path, own_job)

    assert read_run(tmp_path)["attempts"][0]["verdict"]["kind"] == "launcher failed"


def test_a_file_system_without_locks_keeps_nobody_from_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr("fcntl.lockf", refuse)

    with only_launcher_of(tmp_path / "a"):
        assert (tmp_path / "a/launcher.lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, LauncherError, "No space left on device"),
        (errno.EACCES, RequestError, "choose another --output-dir"),
    ],
    ids=["full", "not allowed"],
)
def test_an_attempt_whose_directories_cannot_be_made_is_the_places_fault_or_the_requests(
    number: int, kind: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    attempt = next_attempt(tmp_path, None)
    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(kind, match=rf"the run directory .* cannot be written .*{words}"):
        create_directories(attempt)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (["python", "-u", "a b.py"], "a_b"),
        (["./train.sh", "--fast"], "train"),
        (["python", "-"], "program"),
        (["python", "-W", "ignore", "a.py"], "a"),
    ],
    ids=" ".join,
)
def test_a_run_without_a_name_is_called_after_its_program(program: list[str], name: str, tmp_path: Path) -> None:
    assert run_directory(program, None, str(tmp_path), None).name == name


def test_a_run_file_that_is_nested_too_deeply_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)

    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "run.json")


def test_a_host_that_is_left_out_is_written_down_once(tmp_path: Path) -> None:
    for host in ("n2", "n3", "n2"):
        exclude_host(tmp_path, host)

    assert read_run(tmp_path)["excluded_hosts"] == ["n2", "n3"]
