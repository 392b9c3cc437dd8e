"""How a start is measured: what counts, where the phases come from, and what is printed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.allocation import Allocation, Host
from cluster.bench import Start, Way, bare, can, launch_options, main, measure, parser, phases, table, to_json
from cluster.errors import LauncherError, RequestError
from cluster.mpirun import HYDRA, Mpirun
from conftest import ROOT, Mpi
from stand_ins import stand_ins

TRAINED = {"imports": 2.0, "group": 0.5, "first step": 0.25}


def test_a_ratio_is_taken_within_each_round() -> None:
    figures = {
        "launch": [Start(3.0, {}), Start(4.0, {}), Start(9.0, {})],
        "torchrun": [Start(6.0, {}), Start(5.0, {}), Start(9.0, {})],
    }
    assert table(figures, "launch") == [
        "launch     4.000 (3.000 to 9.000) s",
        "torchrun   6.000 (5.000 to 9.000) s   launch/torchrun 0.800 (0.500 to 1.000)",
    ]
    assert to_json(figures, "launch")["ratios"] == {"launch/torchrun": [0.5, 0.8, 1.0]}


def test_phases_stand_below_one_another_and_what_is_not_known_is_a_dash() -> None:
    figures = {
        "launch": [Start(3.0, {"launcher": 0.1, "imports": 2.0})],
        "mpirun": [Start(2.5, {"imports": 2.1})],
    }
    assert table(figures, "launch")[-3:] == [
        "phase              launch    mpirun",
        "launcher            0.100         –",
        "imports             2.000     2.100",
    ]


def test_what_the_trainer_does_not_explain_lies_before_it(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"start_seconds": TRAINED}))
    assert phases(100.0, 103.0, tmp_path, trains=True) == {"to the program": 0.25, **TRAINED}
    (tmp_path / "run.json").write_text(json.dumps({"attempts": [{"started": 100.125}]}))
    assert phases(100.0, 103.0, tmp_path, trains=True) == {"launcher": 0.125, "to the program": 0.125, **TRAINED}


def test_a_way_that_fails_is_told_with_the_end_of_its_output(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="srun ended with status 3: no such partition"):
        measure(Way("srun", ["sh", "-c", "echo no such partition; exit 3"], {}), tmp_path, False)


def test_a_training_that_made_no_step_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="mpirun ended with status 0"):
        measure(Way("mpirun", ["true"], {"PATH": "/usr/bin:/bin"}), tmp_path, True)


def test_srun_is_compared_in_slurm_alone_and_torchrun_on_one_machine_alone(monkeypatch, tmp_path: Path) -> None:
    for tool in ("srun", "torchrun"):
        (tmp_path / tool).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    host = Host("n1", 2, 0, 2)
    assert not can("srun", Allocation("local", (host,)))
    assert can("srun", Allocation("slurm", (host,)))
    assert can("torchrun", Allocation("slurm", (host,)))
    assert not can("torchrun", Allocation("slurm", (host, host._replace(name="n2"))))


def test_the_launcher_gets_its_own_options_alone() -> None:
    given = ["--rounds", "5", "--json=a.json", "--ranks-per-node", "2", "--output-dir", "o", "--nic", "ib0"]
    assert launch_options(given) == ["--ranks-per-node", "2", "--nic", "ib0"]


@pytest.mark.parametrize("mpi", ["openmpi-5.0.11"], indirect=True)
def test_any_program_is_started_by_each_way_in_turns(mpi: Mpi, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.bench", "--cluster", "local", "--mpirun", str(mpi.mpirun)]
    command += ["--rounds", "1", "--ways", "launch,mpirun", "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(
        [*command, "--", "python", "-c", "pass"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [len(figures["seconds"][way]) for way in ("launch", "mpirun")] == [1, 1]
    assert set(figures["phases"]["launch"][0]) == {"launcher", "to the program", "program"}
    assert done.stdout.startswith("1 node × 2 ranks = 2 ranks, 1 rounds: -c pass\n")


def test_bare_mpirun_is_given_what_the_launcher_gives_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", "secret")
    given = ["-x", "DATA=/data", "--secret", "OWN_KEY", "--ssh", "ssh -p 2222", "--wdir", str(tmp_path)]
    remote = Allocation("ssh", (Host("a", 2, 0, 2),))

    way = bare("mpirun", Mpirun("/mpich/mpirun", HYDRA), remote, ["x"], tmp_path, 1, parser().parse_options(given))

    names = way.command[way.command.index("-genvlist") + 1].split(",")
    assert {"DATA", "OWN_KEY", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH"} <= {*names}
    assert (way.environ["DATA"], way.environ["HYDRA_LAUNCHER_EXTRA_ARGS"]) == ("/data", "-p 2222")
    assert way.command[way.command.index("-launcher-exec") + 1] == "ssh"
    assert way.command[way.command.index("-wdir") + 1] == str(tmp_path)
    assert way.command[-1] == "x"


def test_srun_and_torchrun_are_given_what_one_would_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_ins(tmp_path, torchrun=""))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    here = Allocation("local", (Host("localhost", 2, 0, 2),))
    options = parser().parse_options(["-x", "DATA=/data"])

    srun = bare("srun", None, here, ["python", "a.py"], tmp_path, 1, options)
    torchrun = bare("torchrun", None, here, ["python", "a.py"], tmp_path, 1, options)

    assert (srun.environ["DATA"], torchrun.environ["DATA"]) == ("/data", "/data")
    assert srun.command == ["srun", "--ntasks=2", "--mpi=none", "python", "a.py"]
    assert srun.environ["MASTER_PORT"].isdecimal()
    assert torchrun.command[:3] == [f"{tmp_path}/torchrun", "--nproc-per-node=2", "--no-python"]
    assert torchrun.command[-2:] == ["python", "a.py"]


def test_the_front_end_is_measured_beside_bare_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--front-end", "--rounds", "1"]) == 0

    python, of_help, dry_run = capsys.readouterr().out.splitlines()
    assert python.startswith("python ")
    assert " help/python " in of_help
    assert " dry run/python " in dry_run


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(
        RequestError, match=r"^--ways launch,fork: there is no fork, only launch, mpirun, srun, torchrun$"
    ):
        main(["--ways", "launch,fork"])
