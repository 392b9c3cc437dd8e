"""A real Slurm cluster of several hosts on one Linux machine, for the tests and for trying things by hand.

Every host is a set of Linux namespaces: its own network (one cable to a common switch), its own host name,
its own mounts. All hosts share the machine's file system and process table, as the nodes of a cluster share a
home directory. On them run the real daemons: munge everywhere, slurmctld, slurmdbd and MariaDB on ``ctl``,
slurmd on the nodes, and sshd where it is asked for. Nothing of it touches the machine's own network, /etc,
/run or ~/.ssh.

By hand, as root::

    python tests/slurm_lab.py up                  # ctl; r1n1 r1n2 r2n1 r2n2 with 8 fake GPUs each; w1 w2
    python tests/slurm_lab.py run ctl srun -N2 hostname
    python tests/slurm_lab.py down

LAB_DIR (default: slurm-lab in the temporary folder) holds configuration, logs and state, so that ``down``
finds them. In tests, the fixture ``slurm`` of conftest.py is a running ``SlurmLab``.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CONTROLLER = "ctl"
SWITCH = "switch"

# Program → the Debian package that has it, for one sentence that says what to install.
PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "munged": "munge",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}

# Debian keeps daemons in sbin, which is not on everybody's PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

# What a Slurm job or an mpirun around the tests has set must not steer the Slurm inside.
LAUNCHER_VARIABLES = re.compile(r"(SLURMD?|SBATCH|SALLOC|SRUN|SACCT|SQUEUE|SINFO|OMPI|PMIX?|PRTE|HYDRA|MPI)_")

FINAL_STATES = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}

# The life of one host, from the first process in its namespaces to the last one, which only keeps them open.
# /run is private, so every host has its own munge socket and pid files, and ctl has MariaDB's socket at the
# place where libmariadb looks by default. The name of that mount marks each process of the host for as long
# as it lives: `down` goes by this mark, never by process ids that may have been given to somebody else.
BE_A_HOST = """
name=$1 address=$2 mark=$3 lab=$4 slurm_etc=$5 switch=$6
hostname "$name"
mount -t tmpfs -o mode=755 "$mark" /run
mkdir -p /run/munge /run/mysqld /run/sshd /run/lock
ip link set lo up
if [ -n "$switch" ]; then
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mount --bind "$lab/etc/hosts" /etc/hosts
    mount --bind "$lab/etc/$slurm_etc" /etc/slurm
    [ ! -d /etc/ssh ] || mount --bind "$lab/etc/ssh" /etc/ssh
    ip link add eth0 type veth peer name "$name" netns "$switch"
    ip address add "$address/24" dev eth0
    ip link set eth0 up
else
    ip link add br0 type bridge
    ip link set br0 up
fi
echo $$ > "$lab/pid/$name.new"
mv "$lab/pid/$name.new" "$lab/pid/$name"
exec sleep infinity
"""

SLURM_CONF = """
ClusterName=lab
SlurmctldHost={controller}
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none

# Processes are followed through /proc and bound to nothing: no cgroups needed, and 2 cores can play 64.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu

{accounting}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5

# A site waits minutes here, tests cannot. A requeued job starts again only once its credential has expired.
AuthInfo=cred_expire=5
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,requeue_delay=1
SlurmdTimeout=12
KillWait={kill_wait}
ReturnToService=2
# wait_job asks the controller, also about jobs that ended long ago.
MinJobAge=86400

PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

NodeName={nodes} CPUs={cpus} RealMemory=16000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace_time} MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""

ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={controller}
AccountingStorageTRES=gres/gpu
"""
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"

SLURMDBD_CONF = """
DbdHost={controller}
SlurmUser=root
AuthType=auth/munge
LogFile={lab}/log/slurmdbd.log
PidFile=/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
"""

SSHD_CONFIG = """
AddressFamily inet
AuthorizedKeysFile /etc/ssh/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
# The keys lie under a world-writable temporary folder, which strict modes refuse.
StrictModes no
UsePAM {use_pam}
PidFile /run/sshd.pid
SetEnv TMPDIR={lab}/tmp
"""

SSH_CONFIG = """
Host *
    User root
    IdentityFile {lab}/etc/ssh/id_ed25519
    IdentitiesOnly yes
    UserKnownHostsFile {lab}/etc/ssh/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 10
    LogLevel ERROR
"""


class LabUnavailable(Exception):
    """This machine cannot run the lab; the message lists all that is missing."""


class LabError(Exception):
    """The lab was asked for something it cannot do, or one of its daemons did not come up."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended, as ``scontrol show job`` says it."""

    job_id: str
    state: str
    exit_code: int
    signal: int
    nodelist: str
    restarts: int


class SlurmLab:
    """A Slurm cluster: ``ctl``, the `nodes`, and beside them `plain_hosts` that know nothing of Slurm.

    Two digits in each node's name make Slurm write several brackets: all four nodes are
    ``r1n[1-2],r2n[1-2]``. With ``accounting=False`` there is neither database nor slurmdbd, and sacct knows nothing, as
    at many a site. With ``ends_with_me=True`` the lab belongs to this process: should that be killed,
    the next ``up`` of anybody stops what it left. Without, the lab stays until ``down``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: Sequence[str] = ("r1n1", "r1n2", "r2n1", "r2n2"),
        plain_hosts: Sequence[str] = ("w1", "w2"),
        cpus: int = 16,
        gpus: int = 8,
        grace_time: int = 8,
        kill_wait: int = 5,
        accounting: bool = True,
        ends_with_me: bool = False,
    ) -> None:
        self.directory = directory.absolute()
        self.nodes = tuple(nodes)
        self.plain_hosts = tuple(plain_hosts)
        self.cpus = cpus
        self.gpus = gpus
        self.grace_time = grace_time
        self.kill_wait = kill_wait
        self.accounting = accounting
        self.ends_with_me = ends_with_me
        self._owner_lock: IO[str] | None = None
        self._holders: list[subprocess.Popen[bytes]] = []
        if not re.fullmatch(r"/[A-Za-z0-9._/-]{1,50}", str(self.directory)):
            # It stands in Slurm's configuration, where brackets and spaces mean something, and before the
            # names of unix sockets, which end at 107 characters.
            raise LabError(f"lab directory {self.directory}: wanted a plain path of at most 50 characters")
        for host in self.hosts:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,14}", host):
                raise LabError(f"host {host!r}: wanted at most 15 of a-z, 0-9, '-' (it names a cable too)")

    @property
    def slurm_hosts(self) -> tuple[str, ...]:
        return (CONTROLLER, *self.nodes)

    @property
    def hosts(self) -> tuple[str, ...]:
        return (*self.slurm_hosts, *self.plain_hosts)

    def address(self, host: str) -> str:
        return f"10.0.0.{self.hosts.index(host) + 1}"

    # ── up and down ─────────────────────────────────────────────────────────────────────────────────────────

    def up(self) -> None:
        """Start everything; returns when all nodes are idle.

        Raises LabUnavailable where this machine lacks something, and LabError with the end of the log where a
        daemon does not come up. Either way nothing is left running.
        """
        if missing := what_is_missing():
            raise LabUnavailable("a Slurm lab needs " + "; ".join(missing))
        stop_orphans()
        if self._processes():
            raise LabError(f"a lab is up in {self.directory} already: stop it by 'down' first")
        self._remove_directory()
        try:
            self._write_files()
            with ThreadPoolExecutor() as at_once:
                database = at_once.submit(self._install_database) if self.accounting else None
                self._start_hosts()
                list(at_once.map(self._start_munged, self.slurm_hosts))
                if database is not None:
                    database.result()
                    self._start_accounting()
                self._daemon(CONTROLLER, "slurmctld")
                list(at_once.map(lambda node: self._daemon(node, "slurmd"), self.nodes))
            self._wait_until(self._all_nodes_idle, "all nodes idle", log="slurmctld.log", timeout=30)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Stop every process in this lab's namespaces, and only those, and remove the lab's directory.

        The cables, switches and mounts go with the last process of their namespace.
        """
        deadline = time.monotonic() + 20
        while processes := self._processes():
            if os.getpid() in processes:
                raise LabError("'down' was called on one of the lab's hosts: call it from outside")
            kill(processes)
            for holder in self._holders:
                holder.poll()
            if time.monotonic() > deadline:
                raise LabError(f"processes {sorted(processes)} of {self.directory} survive SIGKILL")
            time.sleep(0.02)
        for holder in self._holders:
            holder.wait()
        self._holders.clear()
        self._remove_directory()
        if self._owner_lock:
            self._owner_lock.close()
            self._owner_lock = None

    def _remove_directory(self) -> None:
        if (self.directory / "lab.json").exists():
            shutil.rmtree(self.directory)
        elif self.directory.is_dir() and any(path.name != "owner.lock" for path in self.directory.iterdir()):
            raise LabError(f"{self.directory} holds files that no lab wrote: choose another LAB_DIR")

    def _write_files(self) -> None:
        lab = self.directory
        lab.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self.ends_with_me:
            # The kernel drops the lock with its process, however that ends. Children do not inherit it.
            self._owner_lock = (lab / "owner.lock").open("w")
            fcntl.flock(self._owner_lock, fcntl.LOCK_EX)
        values = {
            "nodes": self.nodes,
            "plain_hosts": self.plain_hosts,
            "cpus": self.cpus,
            "gpus": self.gpus,
            "grace_time": self.grace_time,
            "kill_wait": self.kill_wait,
            "accounting": self.accounting,
        }
        (lab / "lab.json").write_text(json.dumps(values))
        for name in ("dev", "etc/slurm", "etc/no-slurm", "etc/ssh", "log", "pid", "state", "tmp"):
            (lab / name).mkdir(parents=True)
        (lab / "tmp").chmod(0o1777)

        for number in range(self.gpus):
            os.mknod(lab / f"dev/gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (lab / "munge.key").touch(0o600)
        (lab / "munge.key").write_bytes(secrets.token_bytes(128))
        names = [f"{self.address(host)} {host}" for host in self.hosts]
        (lab / "etc/hosts").write_text("\n".join(["127.0.0.1 localhost", "::1 localhost", *names, ""]))

        facts = values | {"lab": lab, "controller": CONTROLLER, "nodes": ",".join(self.nodes)}
        facts["accounting"] = ACCOUNTING.format(**facts) if self.accounting else NO_ACCOUNTING
        (lab / "etc/slurm/slurm.conf").write_text(SLURM_CONF.format(**facts))
        (lab / "etc/slurm/slurmdbd.conf").touch(0o600)
        (lab / "etc/slurm/slurmdbd.conf").write_text(SLURMDBD_CONF.format(**facts))
        (lab / "etc/slurm/gres.conf").write_text(
            f"Name=gpu File={lab}/dev/gpu[0-{self.gpus - 1}]\n" if self.gpus else ""
        )
        ask = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, env=clean_environment())
        # Slurm loads a cgroup plugin even when nothing asks for cgroups, and its guess fails on mixed
        # hierarchies.
        plugin = "cgroup/v1" if re.search(r" 2[12]\.", ask.stdout) else "disabled"
        (lab / "etc/slurm/cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")

    def _start_hosts(self) -> None:
        self._start_host(SWITCH)
        self._wait_until(lambda: self._holder(SWITCH), "the switch", log=f"{SWITCH}.log")
        for host in self.hosts:
            self._start_host(host)
        self._wait_until(lambda: all(map(self._holder, self.hosts)), "the hosts", log=f"{self.hosts[-1]}.log")
        cables = "".join(f"link set {host} master br0 up\n" for host in self.hosts)
        self.run(SWITCH, ["ip", "-batch", "-"], input=cables)

    def _start_host(self, host: str) -> None:
        address, switch, slurm_etc = "", "", ""
        if host != SWITCH:
            address, switch = self.address(host), str(self._holder(SWITCH))
            slurm_etc = "slurm" if host in self.slurm_hosts else "no-slurm"
        facts = [host, address, self._mark(host), str(self.directory), slurm_etc, switch]
        with (self.directory / f"log/{host}.log").open("w") as log:
            holder = subprocess.Popen(
                ["unshare", "--net", "--uts", "--mount", "--", "sh", "-euc", BE_A_HOST, "sh", *facts],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                cwd="/",
                start_new_session=True,
            )
        self._holders.append(holder)

    def _install_database(self) -> None:
        install = ["mariadb-install-db", "--no-defaults", "--user=root", "--skip-test-db"]
        install += [f"--datadir={self.directory}/mariadb", "--auth-root-socket-user=root"]
        with (self.directory / "log/mariadb-install.log").open("w") as log:
            done = subprocess.run(install, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean_environment())
        if done.returncode != 0:
            raise LabError(f"mariadb-install-db failed:\n{self._log_end('mariadb-install.log')}")

    def _start_accounting(self) -> None:
        # On a socket only, and root is let in because the socket says that it is root: no port, no password.
        self._daemon(
            CONTROLLER,
            *["mariadbd", "--no-defaults", "--user=root", f"--datadir={self.directory}/mariadb"],
            *["--socket=/run/mysqld/mysqld.sock", "--pid-file=/run/mysqld/mysqld.pid", "--skip-networking"],
            *["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"],
            stays_in_front=True,
        )
        ping = ["mariadb-admin", "--no-defaults", "--socket=/run/mysqld/mysqld.sock", "ping"]
        self._wait_until(lambda: self._succeeds(CONTROLLER, ping), "MariaDB", log="mariadbd-ctl.log")
        self._daemon(CONTROLLER, "slurmdbd")
        self._wait_until(
            lambda: self._succeeds(CONTROLLER, ["sacctmgr", "-n", "show", "cluster"]), "slurmdbd", log="slurmdbd.log"
        )
        self.run(CONTROLLER, ["sacctmgr", "-i", "add", "cluster", "lab"])

    def _start_munged(self, host: str) -> None:
        # Forced, because munged mistrusts a world-writable folder above its files, and temporary folders are.
        self._daemon(
            *[host, "munged", "--force", "--socket=/run/munge/munge.socket.2"],
            *["--seed-file=/run/munge/seed", "--pid-file=/run/munge/munged.pid"],
            *[f"--key-file={self.directory}/munge.key", f"--log-file={self.directory}/log/munged-{host}.log"],
        )

    def _daemon(self, host: str, *argv: str, stays_in_front: bool = False) -> None:
        """Start a daemon on `host`; returns when it is in the background (or at once, if it stays in front)."""
        name = f"{argv[0]}-{host}.log"
        with (self.directory / "log" / name).open("a") as log:
            process = self.start(host, argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
        if stays_in_front:
            self._holders.append(process)
        elif process.wait(timeout=30) != 0:
            raise LabError(f"{argv[0]} on {host} ended with {process.returncode}:\n{self._log_end(name)}")

    def _all_nodes_idle(self) -> bool:
        listing = self.run(CONTROLLER, ["sinfo", "-hN", "-p", "main", "-o", "%N %t"], check=False).stdout
        return sorted(listing.splitlines()) == sorted(f"{node} idle" for node in self.nodes)

    def _node_state(self, node: str) -> str:
        return self.run(CONTROLLER, ["sinfo", "-h", "-n", node, "-p", "main", "-o", "%t"], check=False).stdout.strip()

    def _succeeds(self, host: str, argv: Sequence[str]) -> bool:
        return self.run(host, argv, check=False).returncode == 0

    def _wait_until(self, true: Callable[[], Any], what: str, *, log: str, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while not true():
            if time.monotonic() > deadline:
                raise LabError(f"waited {timeout:g} s for {what}; {log} ends with:\n{self._log_end(log)}")
            time.sleep(0.05)

    def _log_end(self, name: str) -> str:
        path = self.directory / "log" / name
        return "\n".join(path.read_text(errors="replace").splitlines()[-15:]) if path.exists() else "(no log)"

    # ── the hosts ───────────────────────────────────────────────────────────────────────────────────────────

    def start(
        self,
        host: str,
        argv: Iterable[str | os.PathLike[str]],
        *,
        env: Mapping[str, str | None] | None = None,
        **popen: Any,
    ) -> subprocess.Popen[Any]:
        """Start a command on `host` and return the running process, whose process id is the command's own.

        It starts in the current directory (or ``cwd=…``), leads its own process group, and gets this
        process's environment, less every launcher's variables (SLURM_*, OMPI_*, …), plus `env`, where None
        takes one away.
        """
        command = self.command(host, argv, cwd=popen.pop("cwd", None))
        return subprocess.Popen(command, env=self.environment(env or {}), start_new_session=True, **popen)

    def run(
        self,
        host: str,
        argv: Iterable[str | os.PathLike[str]],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | str | None = None,
        input: str = "",
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on `host` to its end, with its output as text; see `start` for where and with what.

        Raises CalledProcessError unless it succeeds (``check=False`` returns whatever came), and
        TimeoutExpired after `timeout` seconds, when its process group is killed. Both show the output in
        their message.
        """
        argv = [os.fspath(word) for word in argv]
        # Files, not pipes: a daemon that the command leaves behind would hold a pipe, and this call, open.
        with (
            tempfile.TemporaryFile("w+") as stdin,
            tempfile.TemporaryFile("w+", errors="replace") as stdout,
            tempfile.TemporaryFile("w+", errors="replace") as stderr,
        ):
            stdin.write(input)
            stdin.seek(0)
            process = self.start(host, argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)
            failure: Exception | None = None
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                failure = subprocess.TimeoutExpired([f"{host}:", *argv], error.timeout)
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)  # also when interrupted from the keyboard
                    process.wait()
            stdout.seek(0)
            stderr.seek(0)
            done = subprocess.CompletedProcess(argv, process.returncode, stdout.read(), stderr.read())
        if check and done.returncode != 0 and failure is None:
            whole = [f"{host}:", *argv]
            failure = subprocess.CalledProcessError(done.returncode, whole, done.stdout, done.stderr)
        if failure:
            failure.add_note(f"stdout:\n{done.stdout}\nstderr:\n{done.stderr}")
            raise failure
        return done

    def command(self, host: str, argv: Iterable[str | os.PathLike[str]], *, cwd: Path | str | None = None) -> list[str]:
        """The command line that runs `argv` on `host`, for a caller who starts processes in his own way."""
        holder = self._holder(host)
        if holder is None:
            known = ", ".join(self.hosts)
            raise LabError(f"no host {host!r} is up in {self.directory} (hosts of this lab: {known})")
        enter = ["nsenter", f"--target={holder}", "--net", "--uts", "--mount", f"--wd={cwd or Path.cwd()}"]
        return [*enter, "--", *(os.fspath(word) for word in argv)]

    def environment(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        # Open MPI leaves its session folders behind when a rank is killed: here they go with the lab.
        variables = {**clean_environment(), "TMPDIR": f"{self.directory}/tmp", **changes}
        return {name: value for name, value in variables.items() if value is not None}

    def unplug(self, host: str) -> None:
        """Pull `host`'s network cable: its processes go on, and no packet comes or goes."""
        self.run(SWITCH, ["ip", "link", "set", host, "down"])

    def plug(self, host: str) -> None:
        self.run(SWITCH, ["ip", "link", "set", host, "up"])

    def kill_host(self, host: str) -> None:
        """Cut `host`'s power: every process on it is gone, and its peers hear nothing, not even a reset."""
        # Dying processes close their sockets, which a dead machine does not: the cable goes first.
        self.unplug(host)
        holder = self._holder(host)
        while processes := set(self.processes(host)) - {holder}:
            kill(processes)
            time.sleep(0.02)

    def rejoin(self, node: str) -> None:
        """Put `node` back into service at once: a cable alone Slurm would take a minute to notice."""
        self.plug(node)
        kill(self.processes(node, "slurmd"))
        self._wait_until(lambda: not self.processes(node, "slurmd"), "the old slurmd's end", log=f"slurmd-{node}.log")
        self._daemon(node, "slurmd")
        self._wait_until(
            lambda: not re.search(r"down|\*|^$", self._node_state(node)), node, log="slurmctld.log", timeout=60
        )

    def stop_controller(self) -> None:
        """End slurmctld, which keeps its state; `start_controller` brings it back."""
        for pid in self.processes(CONTROLLER, "slurmctld"):
            os.kill(pid, signal.SIGTERM)
        self._wait_until(lambda: not self.processes(CONTROLLER, "slurmctld"), "slurmctld's end", log="slurmctld.log")

    def start_controller(self) -> None:
        self._daemon(CONTROLLER, "slurmctld")

    def boot(self, host: str) -> None:
        """Start `host` again after `kill_host`, with the daemons that it ran."""
        self.plug(host)
        if host in self.slurm_hosts:
            self._start_munged(host)
        if host == CONTROLLER:
            if self.accounting:
                self._start_accounting()
            self._daemon(host, "slurmctld")
        if host in self.nodes:
            self._daemon(host, "slurmd")
        if (self.directory / f"etc/ssh/key-{host}").exists():
            self._start_sshd(host)

    def start_sshd(self, hosts: Iterable[str] | None = None) -> Path:
        """Run an sshd on `hosts` (default: all), and return the configuration for ``ssh -F FILE HOST …``.

        On the lab's hosts the same file is /etc/ssh/ssh_config, so there a plain ``ssh HOST``, and an mpirun
        that calls ssh by itself, get in too. Users, keys and known hosts are the lab's own; ~/.ssh is left
        alone.
        """
        for program in ("sshd", "ssh", "ssh-keygen"):
            if not shutil.which(program, path=SEARCH_PATH):
                raise LabUnavailable(f"ssh between hosts needs {program} (Debian: openssh-server)")
        ssh = self.directory / "etc/ssh"
        if not (ssh / "id_ed25519").exists():
            self._make_key(ssh / "id_ed25519")
            shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
            # sshd turns away an account whose password is locked by '!', unless PAM is asked instead.
            locked = re.search(r"^root:!", Path("/etc/shadow").read_text(), re.MULTILINE)
            facts = {"lab": self.directory, "use_pam": "yes" if locked else "no"}
            (ssh / "sshd_config").write_text(SSHD_CONFIG.format(**facts))
            (ssh / "ssh_config").write_text(SSH_CONFIG.format(**facts))
        for host in hosts or self.hosts:
            if not (ssh / f"key-{host}").exists():
                self._make_key(ssh / f"key-{host}")
                with (ssh / "known_hosts").open("a") as known:
                    known.write(f"{host},{self.address(host)} {(ssh / f'key-{host}.pub').read_text()}")
                self._start_sshd(host)
        return ssh / "ssh_config"

    def _start_sshd(self, host: str) -> None:
        # sshd runs itself again for each connection, and insists on an absolute path for that.
        sshd = str(shutil.which("sshd", path=SEARCH_PATH))
        self.run(host, [sshd, "-h", f"/etc/ssh/key-{host}", "-E", self.directory / f"log/sshd-{host}.log"])

    def _make_key(self, path: Path) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)

    def _mark(self, host: str) -> str:
        return f"slurm-lab:{self.directory}:{host}"

    def _holder(self, host: str) -> int | None:
        """The process that keeps `host`'s namespaces open, or None where the host is not up."""
        path = self.directory / "pid" / host
        if not path.exists():
            return None
        pid = int(path.read_text())
        return pid if mark_of(pid) == self._mark(host) else None

    def processes(self, host: str, command: str | None = None) -> list[int]:
        """Process ids on `host`, all or those whose executable has this name."""
        found = sorted(self._processes(host))
        return found if command is None else [pid for pid in found if command_name(pid) == command]

    def _processes(self, host: str | None = None) -> set[int]:
        """All processes on `host`, or on any host of this lab."""
        wanted = {self._mark(host)} if host else {self._mark(name) for name in (SWITCH, *self.hosts)}
        return {pid for pid, mark in marked_processes().items() if mark in wanted}

    # ── Slurm ───────────────────────────────────────────────────────────────────────────────────────────────

    def sbatch(self, *argv: str | os.PathLike[str], host: str = CONTROLLER, **run: Any) -> str:
        """Submit a job from `host` and return its id; arguments are sbatch's own."""
        return self.run(host, ["sbatch", "--parsable", *argv], **run).stdout.strip()

    def wait_job(self, job_id: str | int, *, timeout: float = 120) -> JobResult:
        """Wait until the job is over for good (a requeued job goes on), and say how it ended.

        Raises TimeoutError after `timeout` seconds with all that Slurm says about the job.
        """
        deadline = time.monotonic() + timeout
        while True:
            facts = self.job(job_id)
            if facts["JobState"] in FINAL_STATES:
                exit_code, signal_number = map(int, facts["ExitCode"].split(":"))
                return JobResult(
                    job_id=str(job_id),
                    state=facts["JobState"],
                    exit_code=exit_code,
                    signal=signal_number,
                    nodelist=facts["NodeList"],
                    restarts=int(facts["Restarts"]),
                )
            if time.monotonic() > deadline:
                text = "\n".join(f"  {name}={value}" for name, value in facts.items())
                raise TimeoutError(f"job {job_id} is {facts['JobState']} after {timeout:g} s:\n{text}")
            time.sleep(0.2)

    def wait_state(self, job_id: str | int, state: str, *, timeout: float = 60) -> dict[str, str]:
        """Wait until the job is in `state` (RUNNING, PENDING, …) and return what `job` says then."""
        deadline = time.monotonic() + timeout
        while (facts := self.job(job_id))["JobState"] != state:
            if time.monotonic() > deadline or facts["JobState"] in FINAL_STATES:
                raise TimeoutError(f"job {job_id} is {facts['JobState']} ({facts['Reason']}), not {state}")
            time.sleep(0.2)
        return facts

    def job(self, job_id: str | int) -> dict[str, str]:
        """The fields of ``scontrol show job``, as text."""
        line = self.run(CONTROLLER, ["scontrol", "--oneliner", "show", "job", str(job_id)]).stdout
        return dict(re.findall(r"(\S+?)=(.*?)(?= \S+?=|\s*$)", line))


def what_is_missing() -> list[str]:
    """What this machine lacks to run a lab, each as a few words; empty where it can."""
    if sys.platform != "linux":
        return ["Linux (it is made of namespaces)"]
    missing = [] if os.geteuid() == 0 else ["root"]
    absent = [name for name in PROGRAMS if not shutil.which(name, path=SEARCH_PATH)]
    if absent:
        packages = " ".join(dict.fromkeys(PROGRAMS[name] for name in absent))
        missing.append(f"{', '.join(absent)} (Debian: apt-get install {packages})")
    elif not missing:
        if not Path("/etc/slurm").is_dir():
            missing.append("a Slurm that is configured in /etc/slurm")
        trial = ["unshare", "--net", "--uts", "--mount", "mount", "-t", "tmpfs", "trial", "/run"]
        answer = subprocess.run(trial, capture_output=True, text=True, env=clean_environment())
        if answer.returncode != 0:
            missing.append(f"the right to make namespaces and mounts ({answer.stderr.strip()})")
    return missing


def stop_orphans() -> None:
    """Stop labs whose owner is no more, and labs whose directory somebody has deleted."""
    directories = set(Path(tempfile.gettempdir()).glob("slurm-lab-*"))
    for pid, mark in marked_processes().items():
        directory_of_mark = mark.split(":")[1]
        if os.path.exists(f"/proc/{pid}/root{directory_of_mark}"):
            directories.add(Path(directory_of_mark))
        else:
            kill([pid])
    for directory in directories:
        if (directory / "lab.json").exists() and (directory / "owner.lock").exists():
            with (directory / "owner.lock").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its owner lives
                load(directory).down()


def marked_processes() -> dict[int, str]:
    """Process id → mark, of all processes on hosts of any lab."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return {pid: mark for pid in pids if (mark := mark_of(pid))}


def mark_of(pid: int) -> str | None:
    # A line of mountinfo: "36 35 0:31 / /run rw,relatime - tmpfs slurm-lab:/tmp/slurm-lab:r1n1 rw,mode=755"
    try:
        mounts = Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:
        return None
    found = re.search(r" /run .* - tmpfs (slurm-lab:\S+)", mounts)
    return found[1] if found else None


def command_name(pid: int) -> str:
    """The kernel's name for what runs there (its first 15 characters); empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself meanwhile


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not LAUNCHER_VARIABLES.match(name)}
    return kept | {"PATH": SEARCH_PATH}


def load(directory: Path) -> SlurmLab:
    """The lab that an earlier ``up`` started in `directory`."""
    try:
        values = json.loads((directory / "lab.json").read_text())
    except FileNotFoundError:
        raise LabError(f"no lab in {directory}: start one by 'up'") from None
    return SlurmLab(directory, **values)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="A real Slurm cluster of several hosts on this machine. LAB_DIR says where it keeps its state."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the cluster")
    up.add_argument("--nodes", default="r1n1,r1n2,r2n1,r2n2", help="names of the nodes, with commas")
    up.add_argument("--cpus", type=int, default=16, help="CPUs that each node claims to have")
    up.add_argument("--gpus", type=int, default=8, help="fake GPUs of each node")
    up.add_argument("--no-accounting", action="store_true", help="neither database nor slurmdbd")
    run = commands.add_parser("run", help="run a command on a host; users log in to 'ctl'")
    run.add_argument("host")
    run.add_argument("argv", nargs=argparse.REMAINDER, help="default: a shell")
    for name, text in {
        "unplug": "pull a host's network cable",
        "plug": "put it back",
        "kill": "cut a host's power",
        "boot": "start the host again",
    }.items():
        commands.add_parser(name, help=text).add_argument("host")
    sshd = commands.add_parser("sshd", help="run sshd on hosts and print the configuration file for ssh -F")
    sshd.add_argument("hosts", nargs="*", help="default: all")
    commands.add_parser("down", help="stop everything that 'up' started, and only that")
    arguments = parser.parse_args()
    directory = Path(os.environ.get("LAB_DIR") or Path(tempfile.gettempdir()) / "slurm-lab")

    try:
        match arguments.command:
            case "up":
                nodes = arguments.nodes.split(",")
                accounting = not arguments.no_accounting
                lab = SlurmLab(directory, nodes=nodes, cpus=arguments.cpus, gpus=arguments.gpus, accounting=accounting)
                lab.up()
                print(lab.run(CONTROLLER, ["sinfo"]).stdout, end="")
            case "run":
                lab = load(directory)
                command = lab.command(arguments.host, arguments.argv or ["bash"])
                os.execvpe(command[0], command, lab.environment({}))
            case "down":
                if (directory / "lab.json").exists():
                    load(directory).down()
                stop_orphans()
            case "sshd":
                print(load(directory).start_sshd(arguments.hosts))
            case "unplug":
                load(directory).unplug(arguments.host)
            case "plug":
                load(directory).plug(arguments.host)
            case "kill":
                load(directory).kill_host(arguments.host)
            case "boot":
                load(directory).boot(arguments.host)
    except (LabUnavailable, LabError) as error:
        print(f"slurm_lab: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
