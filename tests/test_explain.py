"""`python -m cluster explain`: what it says would run is what runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import slurm
from cluster.errors import LauncherError, RequestError
from cluster.explain import allocation_of_job, bound_to, forwarded_by, main, words_of_sbatch
from cluster.secret import masked
from conftest import ROOT, Mpi
from stand_ins import stand_ins

WHERE = """
import json, os, socket
names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK"]
cpus = sorted(os.sched_getaffinity(0))
print(json.dumps({"cpus": cpus, **{name: int(os.environ[name]) for name in names}}))
"""

SBATCH = """\
[ "$1" = --test-only ] || exit 9
cat > {folder}/script
echo 'sbatch: Job 7 to start at 2026-01-31T12:00:00 using 4 processors on nodes n[1-2] in partition main' >&2
"""


def explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The command's answer as JSON."""
    before, dashes, after = (
        (arguments[: arguments.index("--")], ["--"], arguments[arguments.index("--") + 1 :])
        if "--" in arguments
        else (arguments, [], ())
    )
    assert main([*before, "--json", *dashes, *after]) == 0
    explained: dict[str, Any] = json.loads(capsys.readouterr().out)
    return explained


@pytest.mark.parametrize("mpi", ["openmpi-4.1.8", "openmpi-5.0.11"], indirect=True)
@pytest.mark.parametrize(("nodes", "each", "binding"), [(2, 2, "none"), (2, 1, "core")], ids=str)
def test_the_map_is_that_of_the_ranks_of_a_real_launch(
    mpi: Mpi, nodes: int, each: int, binding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = sorted(os.sched_getaffinity(0))
    if binding == "core" and len(own) < nodes * each:
        pytest.skip("a core for each rank is needed")
    (tmp_path / "where.py").write_text(WHERE)
    request = ["--cluster", "local", "--nodes", str(nodes), "--ranks-per-node", str(each), "--mpirun", str(mpi.mpirun)]
    request += ["--bind-to", binding, "--program", "--output-dir", str(tmp_path / "outputs")]
    program = ["--", "python", str(tmp_path / "where.py")]

    explained = explain(capsys, *request, *program)
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "submit", *request, *program], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
    attempt = tmp_path / "outputs/where/attempt-0001"
    said = [json.loads((attempt / f"logs/rank-{rank}.log").read_text()) for rank in range(nodes * each)]
    assert [(rank["rank"], rank["node"], rank["local_rank"]) for rank in explained["ranks"]] == [
        (rank["RANK"], rank["GROUP_RANK"], rank["LOCAL_RANK"]) for rank in said
    ]
    assert explained["command"] == (attempt / "mpirun.txt").read_text().strip()
    assert explained["hostfile"] == (attempt / "hostfile").read_text()
    if binding == "core":
        assert [rank["cpus"] for rank in explained["ranks"]] == [
            f"core {own.index(cpu)}" for [cpu] in (rank["cpus"] for rank in said)
        ]
    afterwards = explain(capsys, str(tmp_path / "outputs/where"))
    assert afterwards["ranks"] == explained["ranks"]
    assert sorted(record["rank"] for record in afterwards["records"]) == list(range(nodes * each))


def test_without_slurm_too_the_answer_is_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    assert explain(capsys, "--ranks-per-node", "2")["summary"] == "1 node × 2 ranks = 2 ranks"


def test_a_pasted_nodelist_becomes_hosts_ranks_and_gpus_in_every_dialect(capsys: pytest.CaptureFixture[str]) -> None:
    pasted = ["--nodelist", "n[01-16]", "--tasks-per-node", "8(x16)", "--gpus-per-node", "8"]

    four = explain(capsys, *pasted, "--mpi", "openmpi4")
    hydra = explain(capsys, *pasted, "--mpi", "hydra")

    assert four["summary"] == "16 nodes × 8 GPUs = 128 ranks"
    assert four["ranks"][127] == {"rank": 127, "node": 15, "host": "n16", "local_rank": 7, "gpu": 7, "cpus": None}
    assert (four["hostfile"].splitlines()[0], hydra["hostfile"].splitlines()[0]) == ("n01 slots=8", "n01:8")
    assert (" -np 128 --map-by slot " in four["command"], " -n 128 " in hydra["command"]) == (True, True)
    assert four["first_rank"]["MASTER_ADDR"] == "n01"


def test_uneven_tasks_without_gpus_are_shown_rank_by_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodelist", "a,b", "--tasks-per-node", "2,1", "--bind-to", "core"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == [
        "rank  node  host                local  GPU  CPUs",
        "   0     0  a                       0    -  core 0",
        "   1     0  a                       1    -  core 1",
        "   2     1  b                       0    -  core 0",
    ]


def test_a_request_is_shown_with_its_script_and_what_sbatch_says_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, sbatch=SBATCH.format(folder=tmp_path)))
    monkeypatch.chdir(tmp_path)

    assert main(["--nodes", "2", "--gpus", "2", "--prepare-first", "--", "-e", "a"]) == 0

    first, _, out = capsys.readouterr().out.partition("# batch script\n")
    assert "#SBATCH --job-name=a-prepare\n" in first
    script = (tmp_path / "script").read_text()
    assert out.startswith(script)
    assert "#SBATCH --gpus-per-node=2\n" in script
    assert "# sbatch --test-only accepts it: sbatch: Job 7 to start at 2026-01-31T12:00:00 using 4 processors" in out
    assert not (tmp_path / "outputs").exists()


def test_what_sbatch_refuses_is_told_apart_from_a_controller_that_is_away() -> None:
    assert words_of_sbatch(slurm.TestOnly(False, "allocation failure: Invalid partition")) == "refuses it"
    assert words_of_sbatch(slurm.TestOnly(False, "Unable to contact slurm controller")) == "gives no answer"
    assert words_of_sbatch(None) == "gives no answer"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("HF_TOKEN", "hf_abc", "***"),
        ("WANDB_API_KEY", "abc", "***"),
        ("MYPASSWORD", "abc", "***"),
        ("AWS_SECRET_ACCESS_KEY", "abc", "***"),
        ("TOKENIZERS_PARALLELISM", "true", "true"),
        ("HTTPS_PROXY", "http://me:secret@proxy:3128", "http://***@proxy:3128"),
        ("PATH", "/usr/bin:/bin", "/usr/bin:/bin"),
    ],
)
def test_secrets_are_masked(name: str, value: str, shown: str) -> None:
    assert masked(name, value, {}) == shown


def test_no_secret_stands_anywhere_in_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-1")
    arguments = ["--cluster", "slurm", "--nodes", "2", "-x", "SITE_KEY=canary-2", "-x", "HF_TOKEN", "--", "-e", "a"]

    main(arguments)

    out = capsys.readouterr().out
    assert "canary" not in out
    assert "HF_TOKEN=***\n" in out
    assert "SITE_KEY=***\n" in out


def test_a_job_that_has_just_begun_is_explained_by_what_slurm_granted() -> None:
    detail = (
        "JobId=12 NumNodes=2 NumCPUs=3 NumTasks=3 NtasksPerN:B:S:C=0:0:*:1 NodeList=n[1-2]\n"
        "  Nodes=n1 CPU_IDs=0-1 Mem=0 GRES=gpu:2(IDX:0-1)\n  Nodes=n2 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:0)\n"
    )

    assert allocation_of_job(detail, None).summary() == "2 nodes = 3 ranks (n1: 2, n2: 1)"


@pytest.mark.parametrize(
    ("facts", "summary"),
    [
        ("NtasksPerN:B:S:C=4:0:*:1 NodeList=n[1-2]", "2 nodes × 4 ranks = 8 ranks"),
        ("NtasksPerN:B:S:C=2:0:*:1 NodeList=(null) TresPerNode=gres/gpu:2", "2 nodes × 2 GPUs = 4 ranks"),
        ("NtasksPerN:B:S:C=2:0:*:1 NodeList=(null) TresPerNode=gres:gpu:a100:2", "2 nodes × 2 GPUs = 4 ranks"),
    ],
)
def test_a_job_is_explained_by_its_tasks_or_while_it_waits_by_its_request(facts: str, summary: str) -> None:
    assert allocation_of_job(f"JobId=12 NumNodes=2 NumTasks=8 {facts}\n", None).summary() == summary


def test_how_uneven_tasks_are_spread_is_not_guessed() -> None:
    detail = "JobId=12 NumNodes=2 NumTasks=3 NtasksPerN:B:S:C=0:0:*:1 NodeList=n[1-2]\n"

    with pytest.raises(RequestError, match=r"^3 tasks on 2 nodes"):
        allocation_of_job(detail, None)


DETAIL = "JobId=12 NumNodes=2 NumTasks=8 NtasksPerN:B:S:C=4:0:*:1 NodeList=n[1-2]"


def test_a_job_that_has_left_no_run_yet_is_explained_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, scontrol=f"echo '{DETAIL}'"))
    monkeypatch.chdir(tmp_path)

    assert explain(capsys, "12")["summary"] == "2 nodes × 4 ranks = 8 ranks"
    assert main(["12"]) == 0
    shown = capsys.readouterr().out
    assert "# environment" not in shown
    with pytest.raises(RequestError, match=r"^no run smoke, neither here nor in "):
        main(["smoke"])


def test_a_run_that_has_had_no_attempt_is_not_explained_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/request.json").write_text("{}")

    with pytest.raises(RequestError, match=r"^a has had no attempt yet: python -m cluster explain JOB_ID"):
        main([str(tmp_path / "a")])


def test_where_there_is_no_mpirun_open_mpi_5_is_shown_but_never_for_one_that_was_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pasted = ["--nodelist", "n[1-2]", "--program", "--", sys.executable, "-c", "pass"]
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    assert explain(capsys, *pasted)["dialect"] == "Open MPI 5"
    with pytest.raises(LauncherError, match=r"^--mpirun /no/such: no such program"):
        main(["--mpirun", "/no/such", *pasted])


def test_ranks_bound_to_more_than_a_core_are_shown_with_what_they_are_bound_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    explained = explain(capsys, "--nodelist", "n[1-2]", "--tasks-per-node", "1(x2)", "--bind-to", "socket")

    assert [rank["cpus"] for rank in explained["ranks"]] == ["a socket"] * 2
    assert bound_to(["mpirun", "-np", "2"]) == "none"


def test_tasks_without_a_nodelist_are_an_error_that_says_what_is_missing() -> None:
    with pytest.raises(RequestError, match="give its --nodelist"):
        main(["--tasks-per-node", "8(x2)"])


def test_names_and_binding_are_read_from_a_command_of_either_dialect() -> None:
    assert forwarded_by(["mpirun", "-x", "PATH", "-x", "HF_HOME", "python"]) == ["PATH", "HF_HOME"]
    assert forwarded_by(["mpiexec", "-genvlist", "PATH,HF_HOME", "python"]) == ["PATH", "HF_HOME"]
    assert (bound_to(["mpirun", "--bind-to", "core"]), bound_to(["mpiexec", "-bind-to", "numa"])) == ("core", "numa")
