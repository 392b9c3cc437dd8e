"""What `cluster.doctor` looks at on this machine: each check tells what it found, whether that will do, and the fix.

A check gathers at the top of its function and decides below; what another program says is parsed by functions of text.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cluster import slurm
from cluster.errors import LauncherError
from cluster.machine import interface_address, printed_by
from cluster.mpirun import find_mpirun

OK, WARN, WRONG = "ok", "warn", "wrong"
LEAST_FREE_BYTES = 10 * 2**30
"""For checkpoints, or for a cache of models and data."""
SLOW_IMPORT_SECONDS = 15.0
CLOCK_MAY_DIFFER = 2.0
PROGRAM_SECONDS = 300.0
"""What importing torch may take from a slow file server."""
ANSWER_SECONDS = 10.0
SHARED_FILE_SYSTEMS = frozenset(
    ["afs", "beegfs", "ceph", "cifs", "fhgfs", "fuse.glusterfs", "fuse.juicefs", "fuse.s3fs", "gpfs", "lustre"]
    + ["nfs", "nfs4", "orangefs", "panfs", "smb3", "vast", "weka", "wekafs"]
)


class Finding(NamedTuple):
    """One line: `level` is ok, warn or wrong; where it is not ok, `fix` says what to do."""

    level: str
    name: str
    found: str
    fix: str = ""


# ── Slurm ─────────────────────────────────────────────────────────────────────────────────────────


def check_slurm(environ: Mapping[str, str]) -> list[Finding]:
    """The client programs, the controller, what the site has set, and the controller's clock."""
    if shutil.which("sbatch") is None:
        return [Finding(OK, "Slurm", "no sbatch here: runs go to this machine, or over ssh by --hosts")]
    told = printed_by(["sbatch", "--version"], ANSWER_SECONDS) or "unknown"
    version = told.split()[-1]  # after its name, which is slurm or slurm-wlm
    asked_at = time.time()
    config = slurm.configuration()
    if config is None:
        fix = "see scontrol ping; where it says DOWN, wait or ask your site"
        return [Finding(WRONG, "Slurm", f"{version}, its controller does not answer", fix)]
    settings = parse_config(config)
    findings = [Finding(OK, "Slurm", f"{version}, {site_words(settings)}")]
    if settings.get("KillWait", "").split(" ")[0] == "0":
        fix = "ask your site for a KillWait of some seconds; ours stops its ranks at SIGTERM"
        findings.append(Finding(WARN, "Slurm's KillWait", "0: jobs are killed without a chance to end", fix))
    if (theirs := controller_time(config)) is not None and abs(theirs - asked_at) > CLOCK_MAY_DIFFER:
        fix = "look at NTP on both: time limits and logs are told by these clocks"
        findings.append(Finding(WARN, "clock", f"{asked_at - theirs:+.0f} s from that of Slurm's controller", fix))
    job = environ.get("SLURM_JOB_ID")
    if job:
        hosts = environ.get("SLURM_JOB_NODELIST", "")
        findings.append(Finding(OK, "allocation", f"job {job} on {hosts}: try it with --nodes"))
    return findings


def parse_config(text: str) -> dict[str, str]:
    """``Name = value`` lines of ``scontrol show config``."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def controller_time(config: str) -> float | None:
    """Seconds since 1970 of ``Configuration data as of 2026-01-31T12:00:00``; None where it is not told."""
    found = re.search(r"as of (\S+)", config)
    return slurm.seconds_of(found[1]) if found else None


def site_words(settings: Mapping[str, str]) -> str:
    """What a user of this site should know, in a few words."""
    accounting = settings.get("AccountingStorageType", "").rpartition("/")[2] or "none"
    words = ["accounting off: ended jobs are soon forgotten" if accounting == "none" else f"accounting by {accounting}"]
    if settings.get("JobRequeue") == "0":
        words.append("jobs are queued again only with --requeue, as ours are")
    if (preemption := settings.get("PreemptMode", "OFF")) != "OFF":
        words.append(f"preemption by {preemption}")
    if gres := settings.get("GresTypes", "").strip("() "):
        words.append(f"GRES {gres}" if gres != "null" else "no GRES")
    return ", ".join(words)


# ── MPI ───────────────────────────────────────────────────────────────────────────────────────────


def check_mpirun(given: str | None, environ: Mapping[str, str]) -> list[Finding]:
    """Which mpirun would start the ranks."""
    try:
        mpirun = find_mpirun(given, environ)
    except LauncherError as error:
        return [Finding(WRONG, "mpirun", "none that can be used", str(error))]
    version = (printed_by([mpirun.path, "--version"], ANSWER_SECONDS) or "").strip().splitlines()
    number = re.search(r"\d+\.\d+\.\d+\S*", version[0] if version else "")
    return [Finding(OK, "mpirun", f"{mpirun.path}, {mpirun.dialect.name}{f' ({number[0]})' if number else ''}")]


# ── Python and what it imports ────────────────────────────────────────────────────────────────────

PACKAGES = ("slurm-mpi-train", "torch", "transformers", "datasets", "submitit", "tyro", "triton")
NEEDED = ("torch", "transformers", "datasets", "tyro")

# Run by the program's own Python: the front end itself never imports torch.
LOOK = """
import importlib.metadata, json, sys, time
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
found = {"versions": {name: version(name) for name in sys.argv[1:]}}
begun = time.perf_counter()
try:
    import torch
    found["seconds"] = time.perf_counter() - begun
    found["cuda"] = torch.version.cuda or torch.version.hip
    found["gpus"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if found["gpus"]:
        free = [torch.cuda.mem_get_info(number) for number in range(len(found["gpus"]))]
        found["memory"] = free
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(found))
"""


def check_python(python: str, environ: Mapping[str, str]) -> list[Finding]:
    """The Python that ranks run, its packages, torch, and the GPUs that it sees here."""
    look = printed_by([python, "-c", LOOK, *PACKAGES], PROGRAM_SECONDS)
    trial = f"{python} -c 'import torch' shows where"
    if not look:
        what = f"{python} does not run, or does not import torch within {PROGRAM_SECONDS:g} s"
        return [Finding(WRONG, "Python", what, trial)]
    found: dict[str, Any] = json.loads(look.splitlines()[-1])
    version = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding(OK, "Python", f"{version}, {python}")]
    versions = found["versions"]
    missing = [name for name in NEEDED if not versions.get(name)]
    if missing:
        fix = f"{python} -m pip install {' '.join(missing)}, or give the Python that has them in sbatch/env.sh (PYTHON)"
        return [*findings, Finding(WRONG, "packages", f"{', '.join(missing)} missing", fix)]
    findings.append(
        Finding(OK, "packages", ", ".join(f"{name} {number}" for name, number in versions.items() if number))
    )
    if "error" in found:
        return [*findings, Finding(WRONG, "torch", found["error"], trial)]
    if found["seconds"] > SLOW_IMPORT_SECONDS:
        fix = "put the environment on each node's own disk: --stage-env /tmp"
        findings.append(Finding(WARN, "imports", f"torch takes {found['seconds']:.0f} s", fix))
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    compiler = next(filter(None, map(shutil.which, (environ.get("CC") or "cc", "gcc", "clang"))), None)
    return [*findings, *gpu_findings(found, len(devices), compiler)]


def gpu_findings(found: Mapping[str, Any], devices: int, compiler: str | None) -> list[Finding]:
    """What of torch and the GPUs will do.

    Args:
        found: what `LOOK` printed.
        devices: GPUs that the driver shows on this machine.
        compiler: a C compiler's path.
    """
    cuda, gpus = found["cuda"], found["gpus"]
    if not gpus and devices:
        what = f"{devices} here, but torch sees none"
        fix = "ask Slurm for them (--gpus-per-node), or see CUDA_VISIBLE_DEVICES and nvidia-smi"
        if not cuda:
            what, fix = f"{devices} here, but torch is a build for CPUs", "install torch for CUDA: https://pytorch.org"
        return [Finding(WRONG, "GPUs", what, fix)]
    if not gpus:
        built = f"torch is built for CUDA {cuda}" if cuda else "torch is a build for CPUs"
        return [Finding(OK, "GPUs", f"none on this machine; {built}")]
    free = min(share[0] / share[1] for share in found["memory"])
    what = f"{len(gpus)} × {gpus[0]}, CUDA {cuda}, NCCL {found['nccl']}"
    findings = [Finding(OK, "GPUs", what)]
    if free < 0.9:
        fix = "nvidia-smi shows whose process it is"
        findings.append(Finding(WARN, "GPU memory", f"{free:.0%} free on the fullest: it is in use", fix))
    if compiler is None:
        fix = "load your site's compiler module in sbatch/env.sh: without one the step is slower (no fused kernels)"
        findings.append(Finding(WARN, "C compiler", "none, and triton needs one", fix))
    return findings


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def check_folders(output_dir: Path, environ: Mapping[str, str]) -> list[Finding]:
    """Where runs, caches and temporary files lie."""
    in_slurm = shutil.which("sbatch") is not None
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    findings = _folder("run directories", output_dir, in_slurm, "--output-dir")
    findings += _folder("Hugging Face cache", Path(home).expanduser(), in_slurm, "HF_HOME in sbatch/env.sh")
    findings += _folder("temporary files", Path(tempfile.gettempdir()), False, "TMPDIR")
    if not Path("sbatch/env.sh").is_file():
        fix = "submit from the project's folder, or python -m cluster templates . makes it here: every job sources it"
        findings.append(Finding(WARN, "sbatch/env.sh", f"not in {Path.cwd()}", fix))
    return findings


def _folder(name: str, folder: Path, wants_shared: bool, elsewhere: str) -> list[Finding]:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            ahead = os.stat(file.name).st_mtime - time.time()
            locks = _can_lock(file.fileno())
        space = os.statvfs(existing)
    except OSError as error:
        return [Finding(WRONG, name, f"{existing}: {error.strerror}", f"name another place by {elsewhere}")]
    kind = file_system(str(existing), Path("/proc/mounts").read_text())
    free = space.f_bavail * space.f_frsize
    found = f"{folder.absolute()}, {free / 2**30:,.0f} GiB free, {kind}"
    findings = [Finding(OK, name, found)]
    if free < LEAST_FREE_BYTES:
        findings = [Finding(WARN, name, found, f"make room, or name another place by {elsewhere}")]
    if wants_shared and kind not in SHARED_FILE_SYSTEMS:
        fix = f"every node must see it: if it is this machine's own disk, name another place by {elsewhere}"
        findings.append(Finding(WARN, name, f"{kind} is no network's file system by its name", fix))
    if not locks:
        fix = "two launchers of one run cannot see each other there: never start a run twice"
        findings.append(Finding(WARN, name, "files cannot be locked", fix))
    if abs(ahead) > CLOCK_MAY_DIFFER:
        fix = "look at NTP on both"
        findings.append(Finding(WARN, name, f"the file server's clock differs by {ahead:+.0f} s", fix))
    return findings


def _can_lock(file: int) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def file_system(folder: str, mounts: str) -> str:
    """The kind of file system that holds an absolute path, by the lines of /proc/mounts."""
    fields = [line.split() for line in mounts.splitlines()]
    points = [(field[1].replace("\\040", " "), field[2]) for field in fields if len(field) > 2]
    holding = [one for one in points if folder == one[0] or folder.startswith(one[0].rstrip("/") + "/")]
    return max(reversed(holding), key=lambda one: len(one[0]), default=("", "unknown"))[1]


# ── network ───────────────────────────────────────────────────────────────────────────────────────


def check_network(environ: Mapping[str, str]) -> list[Finding]:
    """Interfaces, this machine's own name, and the hub."""
    import socket

    interfaces = [name for _, name in socket.if_nameindex() if name != "lo" and _is_up(name)]
    addresses = {}
    for name in interfaces:
        with suppress(OSError):
            addresses[name] = interface_address(name)
    findings = [_interfaces(addresses)]
    own = socket.gethostname()
    try:
        mine = {str(answer[4][0]) for answer in socket.getaddrinfo(own, None, socket.AF_INET)}
    except OSError:
        fix = "ranks on other nodes find this one by name: let DNS or /etc/hosts know it"
        findings.append(Finding(WARN, "host name", f"{own} has no address", fix))
    else:
        if addresses and all(address.startswith("127.") for address in mine):
            fix = "where ranks of other nodes cannot connect, name the network with --nic"
            findings.append(Finding(WARN, "host name", f"{own} means {', '.join(sorted(mine))} here", fix))
    return [*findings, _hub(environ)]


def _interfaces(addresses: Mapping[str, str]) -> Finding:
    words = ", ".join(f"{name} {address}" for name, address in addresses.items())
    if not addresses:
        return Finding(WARN, "network", "no interface with an address", "only runs on this machine alone will work")
    more = "; where the wrong one is taken, name one with --nic" if len(addresses) > 1 else ""
    return Finding(OK, "network", words + more)


def _is_up(interface: str) -> bool:
    try:
        return Path(f"/sys/class/net/{interface}/operstate").read_text().strip() != "down"
    except OSError:
        return True


def _hub(environ: Mapping[str, str]) -> Finding:
    import urllib.error
    import urllib.request

    if environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Finding(OK, "hub", "not asked: HF_HUB_OFFLINE is set, and what the cache holds is used")
    address = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it has answered
    except (OSError, ValueError) as error:
        fix = "fetch models and data where there is a way out (python -m training.prepare), and set HF_HUB_OFFLINE=1"
        return Finding(WARN, "hub", f"{address} does not answer ({getattr(error, 'reason', error)})", fix)
    return Finding(OK, "hub", f"{address} answers")


# ── limits ────────────────────────────────────────────────────────────────────────────────────────


def check_limits() -> list[Finding]:
    """What this user's processes may take."""
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return limit_findings(files, locked, Path("/sys/class/infiniband").is_dir())


def limit_findings(files: int, locked: int, infiniband: bool) -> list[Finding]:
    """Args: open files and locked memory in bytes (-1: no limit), and whether there is InfiniBand."""
    findings = []
    if 0 <= files < 1024:
        fix = "ulimit -n 4096 in sbatch/env.sh"
        findings.append(Finding(WARN, "open files", f"{files} at most: too few for many ranks", fix))
    if infiniband and locked >= 0:
        fix = "ulimit -l unlimited, or ask your site: InfiniBand needs memory that stays in place"
        findings.append(Finding(WARN, "locked memory", f"{locked // 1024} KiB at most", fix))
    return findings or [Finding(OK, "limits", f"{files if files >= 0 else 'any number of'} open files")]
