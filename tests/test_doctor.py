"""`python -m cluster doctor`: what it makes of a place, and that a place is measured for real."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster import checks
from cluster.checks import (
    OK,
    PACKAGES,
    WARN,
    WRONG,
    Finding,
    check_folders,
    check_network,
    check_python,
    check_slurm,
    controller_time,
    file_system,
    gpu_findings,
    limit_findings,
    parse_config,
    site_words,
)
from cluster.doctor import lines, main
from cluster.errors import LauncherError, RequestError
from conftest import ROOT
from slurm_lab import SlurmLab
from stand_ins import stand_ins
from training.check_hosts import by_host, slow_hosts, table

CONFIG = """Configuration data as of 2026-03-01T12:00:00
AccountingStorageType   = accounting_storage/slurmdbd
GresTypes               = gpu
JobRequeue              = 0
PreemptMode             = REQUEUE
"""


def doctor(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.doctor", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", **environ}
    )


def without_slurm(tmp_path: Path) -> str:
    """A PATH with an mpirun and a C library's tools, and no sbatch."""
    (tmp_path / "bin").mkdir()
    for program in ("mpirun", "sh"):
        found = Path("/bin/sh") if program == "sh" else ROOT / ".mpi/openmpi-5.0.11/bin/mpirun"
        (tmp_path / "bin" / program).symlink_to(found)
    return str(tmp_path / "bin")


def test_a_place_where_nothing_is_wrong_ends_with_status_0(tmp_path: Path) -> None:
    done = doctor("--json", "--output-dir", str(tmp_path / "runs"), PATH=without_slurm(tmp_path))
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert {"Slurm", "mpirun", "Python", "packages", "GPUs", "run directories", "network", "hub"} <= findings.keys()
    assert findings["Slurm"]["found"].startswith("no sbatch here")
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_is_told_with_its_fix_and_status_70(tmp_path: Path) -> None:
    done = doctor("--mpirun", "no-such-mpirun", PATH=without_slurm(tmp_path))
    assert done.returncode == 70
    shown = done.stdout.splitlines()
    [at] = [number for number, line in enumerate(shown) if line.startswith("wrong  mpirun")]
    assert shown[at + 1].strip().startswith("→ --mpirun no-such-mpirun: no such program")
    assert shown[-1].endswith("1 wrong")


def test_measuring_nodes_outside_of_an_allocation_is_refused() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [sys.executable, "-m", "cluster.doctor", "--nodes", "2"], capture_output=True, text=True, cwd=ROOT, env=environ
    )
    assert done.returncode == 64
    assert done.stderr.startswith("error: --nodes 2 measures the nodes of an allocation, and this shell is in none")


def test_more_nodes_than_the_allocation_has_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")

    with pytest.raises(RequestError, match=r"^--nodes 3: this allocation has 2; ask for more, or measure fewer$"):
        main(["--nodes", "3"])


def test_fewer_nodes_than_the_allocation_has_leave_the_others_to_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    launched: list[str] = []

    def launch(arguments: list[str]) -> int:
        launched.extend(arguments)
        return 0

    monkeypatch.setattr("cluster.launch.main", launch)

    assert main(["--nodes", "3", "--output-dir", str(tmp_path)]) == 0
    assert launched[launched.index("--spare-nodes") + 1] == "1"
    launched.clear()
    assert main(["--nodes", "4", "--output-dir", str(tmp_path)]) == 0
    assert "--spare-nodes" not in launched


def test_nodes_that_are_simulated_may_be_more_than_those_of_the_allocation_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    monkeypatch.setattr("cluster.launch.main", lambda arguments: int(arguments[arguments.index("--nodes") + 1]))

    assert main(["--cluster", "local", "--nodes", "2", "--output-dir", str(tmp_path)]) == 2


@pytest.mark.parametrize(("status", "kept"), [(0, []), (71, ["mpirun.log"])], ids=["fit", "unfit"])
def test_what_a_failed_measurement_wrote_stays_to_be_read(
    status: int, kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(arguments: list[str]) -> int:
        (Path(arguments[arguments.index("--output-dir") + 1]) / "mpirun.log").write_text("what ranks printed")
        return status

    monkeypatch.setattr("cluster.launch.main", launch)

    assert main(["--cluster", "local", "--nodes", "2", "--output-dir", str(tmp_path)]) == status
    assert [path.name for path in tmp_path.glob("doctor-*/*")] == kept


def test_a_measurement_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="no-such-mpirun"):
        main(["--cluster", "local", "--nodes", "2", "--mpirun", "no-such-mpirun", "--output-dir", str(tmp_path)])

    assert not list(tmp_path.iterdir())


def test_json_is_for_the_findings_of_this_machine() -> None:
    with pytest.raises(RequestError, match=r"^--json is for the findings of this machine"):
        main(["--nodes", "2", "--json"])


def test_nodes_are_measured_by_real_ranks(tmp_path: Path) -> None:
    where = ["--cluster", "local", "--nodes", "2", "--ranks-per-node", "1", "--output-dir", str(tmp_path)]
    done = doctor(*where, PATH=f"{ROOT / '.mpi/openmpi-5.0.11/bin'}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host  ranks  matrix product  from the host before  all-reduce" in done.stdout.splitlines()
    assert "2 of 2 ranks completed" in done.stdout
    assert not list(tmp_path.iterdir())


def test_on_a_real_slurm_the_site_is_told(slurm: SlurmLab) -> None:
    done = slurm.run("ctl", [sys.executable, "-m", "cluster.doctor", "--json"], cwd=ROOT, check=False)
    found = {finding["name"]: finding["found"] for finding in json.loads(done.stdout)}
    assert "accounting by slurmdbd" in found["Slurm"]
    assert "preemption by REQUEUE" in found["Slurm"]
    assert "GRES gpu" in found["Slurm"]


def site(folder: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str) -> None:
    """A PATH with a Slurm whose controller answers by this line of sh."""
    monkeypatch.setenv("PATH", stand_ins(folder, sbatch="echo slurm 22.05.8", scontrol=scontrol))


def test_a_controller_that_does_not_answer_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site(tmp_path, monkeypatch, "exit 1")
    [finding] = check_slurm({})
    assert (finding.level, finding.found) == (WRONG, "22.05.8, its controller does not answer")


def test_a_controller_that_kills_at_once_or_lives_at_another_time_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site(tmp_path, monkeypatch, "echo 'Configuration data as of 2020-01-31T12:00:00'; echo 'KillWait = 0 sec'")
    slurm, killwait, clock = check_slurm({})
    assert (slurm.level, killwait.level, clock.level) == (OK, WARN, WARN)
    assert killwait.found == "0: jobs are killed without a chance to end"
    assert re.fullmatch(r"\+\d+ s from that of Slurm's controller", clock.found)


def test_the_allocation_of_this_shell_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site(tmp_path, monkeypatch, "echo 'KillWait = 30 sec'")
    *_, allocation = check_slurm({"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]"})
    assert (allocation.level, allocation.found) == (OK, "job 12 on n[1-2]: try it with --nodes")


def test_what_a_site_has_set_is_told_in_a_few_words() -> None:
    settings = parse_config(CONFIG)
    assert site_words(settings).split(", ") == [
        "accounting by slurmdbd",
        "jobs are queued again only with --requeue",
        "as ours are",
        "preemption by REQUEUE",
        "GRES gpu",
    ]
    assert site_words({}) == "accounting off: ended jobs are soon forgotten"


def test_the_controllers_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert controller_time(CONFIG) is not None
    assert controller_time("nothing") is None


GPUS = {"cuda": "13.0", "gpus": ["NVIDIA H100"], "memory": [[75, 80]], "nccl": "2.28.9"}


@pytest.mark.parametrize(
    ("change", "devices", "compiler", "levels"),
    [
        ({}, 1, "/usr/bin/cc", [OK]),
        ({"memory": [[40, 80]]}, 1, "/usr/bin/cc", [OK, WARN]),
        ({}, 1, None, [OK, WARN]),
        ({"gpus": [], "cuda": None}, 2, None, [WRONG]),
        ({"gpus": []}, 2, None, [WRONG]),
        ({"gpus": [], "cuda": None}, 0, None, [OK]),
    ],
    ids=["fit", "in use", "no compiler", "torch for CPUs", "not granted", "login node"],
)
def test_gpus_are_found_fit_or_not(
    change: dict[str, object], devices: int, compiler: str | None, levels: list[str]
) -> None:
    assert [finding.level for finding in gpu_findings({**GPUS, **change}, devices, compiler)] == levels


def test_packages_that_are_missing_are_named_with_the_command_that_brings_them(tmp_path: Path) -> None:
    answer = json.dumps({"versions": {"torch": "2.13.0", "transformers": None, "datasets": None, "tyro": "1.0"}})
    stand_ins(tmp_path, python=f"echo '{answer}'")
    finding = check_python(f"{tmp_path}/python", {})[-1]
    assert (finding.level, finding.found) == (WRONG, "transformers, datasets missing")
    assert finding.fix.startswith(f"{tmp_path}/python -m pip install transformers datasets")


@pytest.mark.parametrize("python", ["kill -SEGV $$", "exec sleep 60"], ids=["crashes", "hangs"])
def test_a_python_that_gives_no_answer_is_told_so_not_what_it_lacks(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "PROGRAM_SECONDS", 0.5)
    stand_ins(tmp_path, python=python)

    [finding] = check_python(f"{tmp_path}/python", {})

    assert (finding.level, finding.name) == (WRONG, "Python")
    assert finding.found == f"{tmp_path}/python does not run, or does not import torch within 0.5 s"
    assert finding.fix == f"{tmp_path}/python -c 'import torch' shows where"


def test_a_torch_that_cannot_be_imported_is_wrong_and_a_slow_one_is_warned_of(tmp_path: Path) -> None:
    versions = dict.fromkeys(PACKAGES, "1.0")

    def told(**found: object) -> Finding:
        stand_ins(tmp_path, python=f"echo '{json.dumps({'versions': versions, **found})}'")
        return check_python(f"{tmp_path}/python", {})[2]

    broken = told(error="ImportError: libcudart")
    slow = told(seconds=16.0, cuda=None, gpus=[])

    assert (broken.level, broken.found) == (WRONG, "ImportError: libcudart")
    assert (slow.level, slow.found) == (WARN, "torch takes 16 s")
    assert slow.fix.endswith("--stage-env /tmp")


def test_a_folder_that_cannot_be_written_is_wrong() -> None:
    findings = check_folders(Path("/proc/runs"), {"HF_HOME": "/tmp"})
    assert findings[0].level == WRONG
    assert findings[0].name == "run directories"
    assert findings[0].fix == "name another place by --output-dir"


def test_folders_with_little_room_no_locks_or_another_time_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setenv("PATH", "")  # no Slurm, whose nodes would all have to see the folder
    monkeypatch.setattr(checks, "LEAST_FREE_BYTES", 2**80)
    monkeypatch.setattr(checks, "CLOCK_MAY_DIFFER", -1.0)
    monkeypatch.setattr(fcntl, "flock", refuse)

    findings = [finding for finding in check_folders(tmp_path, {}) if finding.name == "run directories"]

    assert [finding.level for finding in findings] == [WARN] * 3
    assert findings[0].fix == "make room, or name another place by --output-dir"
    assert findings[1].found == "files cannot be locked"
    assert findings[2].found.startswith("the file server's clock differs by ")


def test_on_a_cluster_the_folders_of_runs_are_to_be_a_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site(tmp_path, monkeypatch, "true")
    monkeypatch.chdir(tmp_path)
    findings = check_folders(Path("/dev/shm"), {"HF_HOME": "/dev/shm"})
    assert [finding.found for finding in findings if finding.level == WARN] == [
        "tmpfs is no network's file system by its name",
        "tmpfs is no network's file system by its name",
        f"not in {tmp_path}",
    ]


@pytest.mark.parametrize(
    ("own", "level", "found"),
    [(None, WARN, " has no address"), ("127.0.1.1", WARN, " means 127.0.1.1 here"), ("192.0.2.1", None, "")],
    ids=["unknown", "loopback", "its own"],
)
def test_the_own_name_is_to_mean_an_address_of_the_network(
    own: str | None, level: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object) -> list[tuple[object, ...]]:
        if own is None:
            raise socket.gaierror("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (own, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(checks, "interface_address", lambda name: "192.0.2.1")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])

    told = [finding for finding in check_network({"HF_HUB_OFFLINE": "1"}) if finding.name == "host name"]

    assert [(finding.level, finding.found) for finding in told] == (
        [(level, socket.gethostname() + found)] * bool(level)
    )


def test_a_machine_without_an_interface_is_told_that_it_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "no-such-one")])
    network, *_ = check_network({"HF_HUB_OFFLINE": "1"})
    assert (network.level, network.found) == (WARN, "no interface with an address")


@pytest.mark.parametrize(
    ("status", "level", "found"),
    [("200 OK", OK, "answers"), ("401 Unauthorized", OK, "answers"), (None, WARN, "does not answer")],
)
def test_the_hub_is_asked_whether_it_answers(
    status: str | None, level: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(65536)
                if status:
                    connection.sendall(f"HTTP/1.0 {status}\r\n\r\n".encode())

        answering = threading.Thread(target=answer)
        answering.start()
        hub = check_network({"HF_ENDPOINT": address})[-1]
        answering.join()
    assert (hub.level, hub.found.removeprefix(f"{address} ").partition(" (")[0]) == (level, found)


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    mounts = "/dev/sda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\nx /home/me\\040too lustre rw 0 0\n"
    assert file_system("/home/you/runs", mounts) == "nfs4"
    assert file_system("/home/me too/runs", mounts) == "lustre"
    assert file_system("/homes", mounts) == "ext4"


@pytest.mark.parametrize(
    ("files", "locked", "infiniband", "levels"),
    [(1024, -1, True, [OK]), (512, -1, False, [WARN]), (4096, 65536, True, [WARN]), (4096, 65536, False, [OK])],
)
def test_limits_are_too_low_only_where_they_are_needed(
    files: int, locked: int, infiniband: bool, levels: list[str]
) -> None:
    assert [finding.level for finding in limit_findings(files, locked, infiniband)] == levels


def test_findings_stand_in_columns_with_the_fix_below() -> None:
    findings = [Finding(OK, "Slurm", "22.05.8"), Finding(WARN, "hub", "no answer", "fetch ahead")]
    assert lines(findings) == [
        "ok     Slurm  22.05.8",
        "warn   hub    no answer",
        "              → fetch ahead",
        "",
        "1 ok, 1 warn, 0 wrong",
    ]


REPORTS = [{"host": host, "flops": flops} for host, flops in (("a", 9e12), ("a", 8e12), ("b", 3e12), ("c", 9e12))]
NETWORK = [{"ring": 1e10, "all_reduce": 4e9}, {"all_reduce": 5e9}, {"ring": 1e10}, {"ring": 2e9}]


def test_a_host_counts_as_fast_as_its_slowest_rank() -> None:
    hosts = by_host(REPORTS, NETWORK)
    assert hosts["a"] == {"ranks": 2, "flops": 8e12, "ring": 1e10, "all_reduce": 4e9}
    assert re.split(" {2,}", table(hosts, "cpu")[2]) == ["a", "2", "8,000 GFLOP/s", "10.0 GB/s", "4.0 GB/s"]


def test_hosts_that_are_much_slower_than_the_others_are_named() -> None:
    assert slow_hosts(by_host(REPORTS, NETWORK)) == [
        "b: a matrix product at 3,000 GFLOP/s, the others 8,500 GFLOP/s",
        "c: a message from the host before at 2,000 MB/s, the others 10,000 MB/s",
    ]
    assert not slow_hosts(by_host(REPORTS[:2], []))


def test_the_measuring_of_hosts_takes_no_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training.check_hosts", "--nodes", "2"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 64
    assert done.stderr.startswith("error: given --nodes, wanted no option but --help; ")
