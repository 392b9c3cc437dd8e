"""Secrets reach the ranks, and appear nowhere else."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import COMPLETE, RequestError
from cluster.explain import main as explain
from cluster.options import run
from cluster.records import Records, read_records
from cluster.secret import masked, without
from cluster.submit import main as submit
from conftest import ROOT, Mpi
from slurm_lab import SlurmLab
from waiting import wait_until

# Drawn anew: neither a copy of this file nor the same test in another process holds it.
CANARY = f"canary{os.urandom(8).hex()}"
SECRETS = {"HF_TOKEN": f"hf_{CANARY}", "WANDB_API_KEY": f"wandb_{CANARY}", "SITE_DATABASE": f"db://{CANARY}"}
SAYS_WHICH = """
import hashlib, os, time
values = [os.environ[name] for name in ("HF_TOKEN", "WANDB_API_KEY", "SITE_DATABASE")]
print(*(hashlib.sha256(value.encode()).hexdigest() for value in values), flush=True)
while not os.path.exists("go"):
    time.sleep(0.1)
"""
BY_HAND = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=2 --output=%x-%j.log
exec {python} -m cluster.launch --mpirun {mpirun} --secret SITE_DATABASE --experiment-name secret -- python which.py
"""


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of a user who has them, in a directory of nothing."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--secret", "NOT_SET"], "--secret NOT_SET: it is not set here"),
        (["--secret", "A=hunter2!"], "--secret 'A': wanted the NAME of a variable, without its value"),
        (["-x", "HF_TOKEN=hf_other"], "-x HF_TOKEN=…: a command line can be read by others"),
        (["--secret", "SITE_DATABASE", "-x", "SITE_DATABASE=x"], "-x SITE_DATABASE=…: a command line can be read"),
        ([f"--mpirun-arg=-x HF_TOKEN={SECRETS['HF_TOKEN']}"], "the value of HF_TOKEN stands among the arguments"),
    ],
)
def test_a_secret_on_a_command_line_is_refused_and_its_value_is_not_repeated(
    options: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(submit, ["--nodes=1", "--gpus=0", "--dry-run", *options, "--program", "--", "true"]) == 64

    said = capsys.readouterr().err
    assert words in said
    assert not any(text in said for text in (CANARY, "hunter2", "hf_other"))


@pytest.mark.usefixtures("secrets")
def test_a_secret_among_the_programs_own_arguments_is_refused() -> None:
    with pytest.raises(RequestError, match="the value of WANDB_API_KEY stands among the arguments"):
        submit(["--nodes=1", "--dry-run", "--program", "--", "true", f"--key={SECRETS['WANDB_API_KEY']}"])


@pytest.mark.usefixtures("secrets")
def test_what_would_run_is_shown_with_masks_also_where_another_variable_quotes_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_CONFIG", f"login {SECRETS['SITE_DATABASE']}")

    request = ["--nodes=1", "--gpus=0", "--secret", "SITE_DATABASE", "--program", "--", "true"]
    assert explain(request) == COMPLETE
    assert submit(["--dry-run", *request]) == COMPLETE

    said = capsys.readouterr().out
    assert "SITE_DATABASE=***\n" in said
    assert "HF_CONFIG=login ***\n" in said
    assert CANARY not in said


def test_what_a_rank_quotes_as_it_fails_is_kept_without_it(tmp_path: Path) -> None:
    records = Records(tmp_path / "ranks.jsonl", SECRETS)
    records.add({"rank": 0, "state": "failed", "detail": f"ValueError: {SECRETS['HF_TOKEN']} is wrong"})
    records.close()

    assert [record["detail"] for record in (*read_records(tmp_path), *records.of("failed"))] == [
        "ValueError: *** is wrong"
    ] * 2


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("mpi", ["mpich-5.0.2"], indirect=True)
def test_an_error_that_quotes_a_secret_has_it_in_the_ranks_own_files_alone(mpi: Mpi, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("import os\nraise ValueError(os.environ['HF_TOKEN'] + ' is wrong')\n")
    here = ["--cluster=local", f"--mpirun={mpi.mpirun}", "--ranks-per-node=2", "--experiment-name=a"]

    launched, reported = (
        subprocess.run([sys.executable, "-m", *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        for words in (["cluster.launch", *here, "--", "python", "fails.py"], ["training.report", "outputs/a"])
    )

    assert (launched.returncode, reported.returncode) == (1, COMPLETE)
    verdict = launched.stdout[launched.stdout.index("── rank crash".encode()) :]
    assert b"ValueError: *** is wrong" in verdict
    assert CANARY.encode() not in verdict
    assert b"*** is wrong" in (tmp_path / "outputs/a/report.html").read_bytes()
    own = [f"{kind}/rank-{rank}.{end}" for kind, end in (("errors", "json"), ("logs", "log")) for rank in range(2)]
    assert {str(path.relative_to(tmp_path / "outputs/a/attempt-0001")) for path in files_with_it(tmp_path)} <= {*own}


def test_a_short_value_is_masked_by_its_name_alone() -> None:
    assert masked("PIN", "12", {"PIN": "12"}) == "***"
    assert without("step 12", {"PIN": "12"}) == "step 12"


@contextmanager
def process_table(seen: set[str]) -> Iterator[None]:
    """Meanwhile collect the command lines of all processes, of all hosts, which share one process table."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdecimal():
                    try:
                        seen.add((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                    except OSError:
                        continue

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def files_with_it(*folders: Path) -> list[Path]:
    """Files that hold a secret. The controller's own copy of a job's environment, for root alone, is left out."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if path.name != "environment" and CANARY.encode() in read(path)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has gone meanwhile


@pytest.mark.parametrize(
    ("front_end", "mpi"),
    [("submit", "openmpi-5.0.11"), ("submit", "mpich-5.0.2"), ("sbatch", "openmpi-4.1.8"), ("sbatch", "mpich-5.0.2")],
    indirect=["mpi"],
)
def test_on_a_real_slurm_only_the_ranks_have_them(slurm: SlurmLab, front_end: str, mpi: Mpi, tmp_path: Path) -> None:
    for name in ("cluster", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "which.py").write_text(SAYS_WHICH)
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.iterdir())
    run_dir, table = tmp_path / "outputs/secret", set[str]()
    ranks = [run_dir / f"attempt-0001/logs/rank-{rank}.log" for rank in range(4)]

    def of_slurm(*command: str) -> str:
        return str(slurm.run("ctl", command, cwd=tmp_path, env=SECRETS).stdout)

    def ours(*words: str) -> str:
        return of_slurm(sys.executable, "-m", "cluster", *words)

    with process_table(table):
        if front_end == "submit":
            own = ["--nodes=2", "--gpus=0", "--ranks-per-node=2", f"--mpirun={mpi.mpirun}", "--secret=SITE_DATABASE"]
            request = [*own, "--experiment-name=secret", "--program", "--", "python", "which.py"]
            said = [ours("submit", "--dry-run", *request), ours("submit", "--json", *request)]
            job = json.loads(said[-1])["job_id"]
        else:
            (tmp_path / "job.sh").write_text(BY_HAND.format(python=sys.executable, mpirun=mpi.mpirun))
            said, job = [], of_slurm("sbatch", "--parsable", "job.sh").strip()
        wait_until(lambda: all(log.exists() and log.read_text() for log in ranks), 60)
        said += [
            of_slurm("scontrol", "show", "job", "-d", job),
            of_slurm("scontrol", "write", "batch_script", job, "-"),
        ]
        said += [ours("status", "secret"), ours("logs", "secret"), ours("explain", "secret")]
        found = files_with_it(tmp_path, slurm.directory, *(set(temporary.iterdir()) - before))
        (tmp_path / "go").touch()
        end = slurm.wait_job(job)
    said += [of_slurm("sacct", "-P", "-j", job, "-o", "ALL"), ours("logs", "secret", "--launcher")]

    assert end.state == "COMPLETED"
    hashes = " ".join(hashlib.sha256(value.encode()).hexdigest() for value in SECRETS.values())
    assert [log.read_text().strip() for log in ranks] == [hashes] * 4
    assert not [line for line in table if CANARY in line]
    assert any("cluster.rank" in line for line in table)
    assert not [text for text in said if CANARY in text]
    assert [*found, *files_with_it(tmp_path, slurm.directory)] == []
    for host in slurm.slurm_hosts:
        there = slurm.run(host, ["grep", "-rlsI", "--exclude-dir=systemd", CANARY, "/dev/shm", "/run"], check=False)
        assert there.stdout == ""
