"""How long a start takes, by phases: this launcher beside bare mpirun, srun and torchrun, with the same program.

    python -m cluster bench [options]                          the trainer's smoke preset, to its first step
    python -m cluster bench [options] -- python my_script.py   any program, to its end
    python -m cluster bench --front-end                        the front end beside bare Python

What is compared runs in turns, after one round that only warms the caches of files. Here, over ssh (launch and mpirun),
and inside an allocation of Slurm.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.allocation import Allocation
from cluster.command import bare_command, launch_environment
from cluster.errors import LauncherError, RequestError
from cluster.granted import find_allocation
from cluster.growing_logs import tail
from cluster.hostfile import hostfile_text
from cluster.mpirun import Mpirun, find_mpirun
from cluster.options import OptionParser, add_place_options, at_least, run, split_program
from cluster.program import resolve_program
from cluster.records import read_records
from cluster.rendezvous import rendezvous
from cluster.request import forwarded_environment
from cluster.run_file import RUN_FILE
from cluster.trainer import METRICS_FILE, SUMMARY_FILE, is_training

USAGE = "python -m cluster bench [options] [-- PROGRAM [arguments]]"
DEFAULT_PROGRAM = (
    *("python", "-m", "training.train_llm"),
    *("--preset", "smoke", "--max-steps", "1", "--device", "cpu", "--max-eval-samples", "1"),
)
WAYS = ("launch", "mpirun", "srun", "torchrun")
LOOK_EVERY = 0.002
LAUNCHER, TO_PROGRAM, PROGRAM = "launcher", "to the program", "program"


class Way(NamedTuple):
    """One way to start the program's ranks: a command line, and the environment that it needs."""

    name: str
    command: list[str]
    environ: Mapping[str, str]


class Start(NamedTuple):
    """One start: seconds until the first step (or the program's end), and of them those of each phase that is known."""

    seconds: float
    phases: dict[str, float]


def main(arguments: list[str]) -> int:
    before, program = split_program(arguments)
    options = parser().parse_options(before)
    if options.front_end:
        figures = in_turns(front_end(), options.rounds)
        base = "python"
    else:
        if unknown := set(options.ways.split(",")) - set(WAYS):
            raise RequestError(f"--ways {options.ways}: there is no {min(unknown)}, only {', '.join(WAYS)}")
        program = resolve_program(program or DEFAULT_PROGRAM, options.wdir or ".")
        if options.ranks_per_node is None and not options.hosts and "SLURM_JOB_ID" not in os.environ:
            options.ranks_per_node, before = 2, [*before, "--ranks-per-node", "2"]
        allocation = find_allocation(options, os.environ)
        print(f"{allocation.summary()}, {options.rounds} rounds: {' '.join(program[1:] or program)}")
        starts = {
            name: starting(name, options, launch_options(before), program, allocation)
            for name in WAYS
            if name in options.ways.split(",") and can(name, allocation)
        }
        figures, base = in_turns(starts, options.rounds), "launch"
    print("\n".join(table(figures, base)))
    if options.json:
        Path(options.json).write_text(json.dumps(to_json(figures, base), indent=2) + "\n")
    return 0


def parser() -> OptionParser:
    options = OptionParser("python -m cluster bench", USAGE, str(__doc__))
    options.add_argument("--rounds", type=at_least(1), default=7, metavar="N", help="of each way (default: 7)")
    options.add_argument("--ways", default=",".join(WAYS), help="which ones, of launch,mpirun,srun,torchrun")
    options.add_argument("--json", metavar="FILE", help="every single figure goes there")
    options.add_argument("--front-end", action="store_true", help="measure --help and --dry-run instead of a start")
    add_place_options(options)
    return options


def can(way: str, allocation: Allocation) -> bool:
    """Whether a way exists here: srun in an allocation of Slurm; torchrun where it is installed, on one machine."""
    if way == "srun":
        return allocation.source == "slurm" and shutil.which("srun") is not None
    if way == "torchrun":
        return _torchrun() is not None and allocation.source != "ssh" and len(allocation.hosts) == 1
    return True


def starting(
    name: str, options: Namespace, passed_on: Sequence[str], program: Sequence[str], allocation: Allocation
) -> Callable[[int], Start]:
    """A function that starts the program in this way once; its argument is the number of the round."""

    def start(number: int) -> Start:
        # Where the run directory goes by default: on a cluster that is a file system which all nodes see.
        parent = Path(options.output_dir or (tempfile.gettempdir() if allocation.source == "local" else "."))
        with tempfile.TemporaryDirectory(prefix="start-", dir=parent.absolute()) as folder:
            place = Path(folder)
            trained = ["--output-dir", folder, "--experiment-name", "run"] if is_training(program) else []
            whole = [*program, *trained]
            if name == "launch":
                own = [] if trained else ["--output-dir", folder, "--experiment-name", "run"]
                launch = [sys.executable, "-m", "cluster.launch", *passed_on, *own, "--", *whole]
                way = Way(name, launch, os.environ)
            else:
                mpirun = find_mpirun(options.mpirun, os.environ) if name == "mpirun" else None
                way = bare(name, mpirun, allocation, whole, place, number, options)
            return measure(way, place, is_training(program))

    return start


def bare(
    name: str,
    mpirun: Mpirun | None,
    allocation: Allocation,
    program: Sequence[str],
    folder: Path,
    number: int,
    options: Namespace,
) -> Way:
    """The program by mpirun, srun or torchrun alone, as one would type it."""
    address, port, held = rendezvous(allocation, os.environ, number, allocation.hosts[0].name)
    held.close()  # as nobody holds it who types this
    meet = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    here = forwarded_environment(options)
    if name == "srun":
        command = ["srun", f"--ntasks={allocation.world_size}", "--mpi=none", *program]
        return Way(name, command, {**here, **meet})
    if name == "torchrun":
        torchrun = [_torchrun() or "torchrun", f"--nproc-per-node={allocation.world_size}", "--no-python"]
        return Way(name, [*torchrun, f"--master-addr={address}", f"--master-port={port}", *program], here)
    assert mpirun is not None
    hostfile = folder / "hostfile"
    hostfile.write_text(hostfile_text(allocation, mpirun.dialect))
    environ = {**launch_environment(options, mpirun, allocation), **meet}
    return Way(name, bare_command(options, mpirun, allocation, program, hostfile, environ, meet), environ)


def measure(way: Way, folder: Path, trains: bool) -> Start:
    """Start it once, and await its end.

    Raises `LauncherError` where it fails, with the last lines of its output.
    """
    rows, log = folder / "run" / METRICS_FILE, folder / "output.log"
    first_row = None
    with log.open("wb") as output:
        begun = time.time()
        running = subprocess.Popen(way.command, env=dict(way.environ), stdout=output, stderr=output)
        while trains and first_row is None and running.poll() is None:
            if rows.exists() and rows.stat().st_size:
                first_row = time.time()
            time.sleep(LOOK_EVERY)
        running.wait()
        ended = time.time()
    if running.returncode or (trains and first_row is None):
        raise LauncherError(f"{way.name} ended with status {running.returncode}: {tail(log)}")
    reached = first_row if first_row is not None else ended
    return Start(reached - begun, phases(begun, reached, folder / "run", trains))


def phases(begun: float, reached: float, run_dir: Path, trains: bool) -> dict[str, float]:
    """Seconds by phase, from what launcher, ranks and trainer leave in the run directory anyway."""
    known: dict[str, float] = {}
    began = None
    if trains:
        known = {name: float(value) for name, value in _read(run_dir / SUMMARY_FILE)["start_seconds"].items()}
        began = reached - sum(known.values())
    else:
        own = [record for record in read_records(run_dir / "attempt-0001") if record["state"] == "started"]
        if own:
            began = min(record["time_ns"] for record in own) / 1e9
            known = {PROGRAM: reached - began}
    if began is None:
        return {}
    if not (run_dir / RUN_FILE).exists():
        return {TO_PROGRAM: began - begun, **known}
    launched = _read(run_dir / RUN_FILE)["attempts"][0]["started"]
    return {LAUNCHER: launched - begun, TO_PROGRAM: began - launched, **known}


def front_end() -> dict[str, Callable[[int], Start]]:
    """Bare Python, the front end's help, and a dry run for Slurm."""
    commands = {
        "python": ["-c", "pass"],
        "help": ["-m", "cluster.submit", "--help"],
        "dry run": ["-m", "cluster.submit", "--cluster", "slurm", "--dry-run"],
    }

    def starter(name: str) -> Callable[[int], Start]:
        def start(number: int) -> Start:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "sbatch").symlink_to("/bin/false")  # so that there is a Slurm to plan for
                environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
                return measure(Way(name, [sys.executable, *commands[name]], environ), Path(folder), False)

        return start

    return {name: starter(name) for name in commands}


def in_turns(starts: Mapping[str, Callable[[int], Start]], rounds: int) -> dict[str, list[Start]]:
    """So many starts of each, one after the other in each round; the first round is not counted."""
    figures: dict[str, list[Start]] = {name: [] for name in starts}
    for number in range(rounds + 1):
        for name, start in starts.items():
            taken = start(number + 1)
            if number:
                figures[name].append(taken)
    return figures


def table(figures: Mapping[str, Sequence[Start]], base: str) -> list[str]:
    """Medians with the smallest and largest of the rounds; ratios are taken within each round."""
    lines = []
    for name, starts in figures.items():
        line = f"{name:<10} {_spread([start.seconds for start in starts])} s"
        if name != base and base in figures:
            line += "   " + _ratio_text(name, base, ratios(figures, name, base))
        lines.append(line)
    medians = {name: _medians(starts) for name, starts in figures.items() if any(start.phases for start in starts)}
    rows = list(dict.fromkeys(phase for known in medians.values() for phase in known))
    if rows:
        lines += ["", f"{'phase':<15}" + "".join(f"{name:>10}" for name in medians)]
        for row in rows:
            cells = (f"{known[row]:>10.3f}" if row in known else f"{'–':>10}" for known in medians.values())
            lines.append(f"{row:<15}" + "".join(cells))
    return lines


def ratios(figures: Mapping[str, Sequence[Start]], name: str, base: str) -> list[float]:
    """Round by round: this launcher's time over that of another way; of the front end, its time over bare Python's."""
    pairs = zip(figures[base], figures[name], strict=True)
    if base == "launch":
        return [ours.seconds / other.seconds for ours, other in pairs]
    return [one.seconds / python.seconds for python, one in pairs]


def to_json(figures: Mapping[str, Sequence[Start]], base: str) -> dict[str, Any]:
    """Every figure of every round, and the ratios."""
    return {
        "seconds": {name: [start.seconds for start in starts] for name, starts in figures.items()},
        "phases": {name: [start.phases for start in starts] for name, starts in figures.items()},
        "ratios": {
            _ratio_name(name, base): ratios(figures, name, base) for name in figures if name != base and base in figures
        },
    }


def launch_options(before: Sequence[str]) -> list[str]:
    """The options that are the launcher's own, without those of this command and what names its run directory."""
    own = ("--rounds", "--ways", "--json", "--output-dir", "--experiment-name")
    kept: list[str] = []
    words = iter(before)
    for word in words:
        if word in own:
            next(words, None)
        elif word.partition("=")[0] not in own:
            kept.append(word)
    return kept


def _ratio_name(name: str, base: str) -> str:
    return f"launch/{name}" if base == "launch" else f"{name}/{base}"


def _ratio_text(name: str, base: str, values: Sequence[float]) -> str:
    return f"{_ratio_name(name, base)} {_spread(values)}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _medians(starts: Sequence[Start]) -> dict[str, float]:
    names = dict.fromkeys(name for start in starts for name in start.phases)
    return {name: statistics.median(start.phases[name] for start in starts if name in start.phases) for name in names}


def _torchrun() -> str | None:
    beside = os.path.dirname(sys.executable)
    return shutil.which("torchrun", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
