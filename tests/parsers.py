"""Everything that reads text from elsewhere, with a little of what it is meant for: the table of the fuzzers."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

MOST_SECONDS = 1.0
"""Of the processor, for one input."""
MOST_BYTES = 50 * 2**20
"""Of memory beyond what was there, for one input."""
LONGEST_INPUT = 64 * 2**10
"""Bytes of one input: a file that is read whole takes memory by its size."""


class Parser(NamedTuple):
    """One reader. `parse` gets the bytes and a folder of its own."""

    name: str
    parse: Callable[[bytes, Path], object]
    seeds: tuple[bytes, ...]


def nodelist(data: bytes, _: Path) -> object:
    from cluster.nodelist import expand_nodelist

    return expand_nodelist(data.decode("utf-8", "replace"))


def counts(data: bytes, _: Path) -> object:
    from cluster.nodelist import expand_counts

    return expand_counts(data.decode("utf-8", "replace"))


def hosts(data: bytes, _: Path) -> object:
    from cluster.allocation import from_hosts

    return from_hosts(data.decode("utf-8", "replace"))


def hostfile(data: bytes, _: Path) -> object:
    from cluster.allocation import from_hostfile_text

    return from_hostfile_text(data.decode("utf-8", "replace"))


def granted_gpus(data: bytes, _: Path) -> object:
    from cluster.allocation import parse_granted_gpus

    return parse_granted_gpus(data.decode("utf-8", "replace"))


def grid(data: bytes, _: Path) -> object:
    from cluster.grid import combinations, parse_grid

    return combinations(parse_grid(data.decode("utf-8", "replace").split("\n")))


def launcher_configuration(data: bytes, folder: Path) -> object:
    from cluster.config_file import resolve_arguments
    from cluster.launch import parser

    return resolve_arguments(["--config", str(_file(folder, "config.toml", data))], parser())


def trainer_configuration(data: bytes, folder: Path) -> object:
    from training.config import config_from_argv

    return config_from_argv(["--config", str(_file(folder, "config.toml", data))], "train")


def trainer_toml(data: bytes, folder: Path) -> object:
    """The file alone: what else a command line goes through takes most of the time."""
    from training.config import read_toml

    return read_toml(_file(folder, "config.toml", data))


def metrics(data: bytes, folder: Path) -> object:
    from cluster.progress import all_rows, read_progress
    from training.metrics import before, bit_exact, read_rows

    path = _file(folder, "metrics.jsonl", data)
    rows = read_rows(path)
    return all_rows(path), read_progress(folder), before(path, 3), bit_exact(rows)


def run_directory(data: bytes, folder: Path) -> object:
    from cluster.request_file import read_request
    from training.report.run import read_run

    (folder / "attempt-0001").mkdir(exist_ok=True)
    for name in ("config.json", "metrics.jsonl", "rank_times.jsonl", "run.json", "events.jsonl", "summary.json"):
        _file(folder, name, data)
    _file(folder, "request.json", data)
    _file(folder, "attempt-0001/plan.json", data)
    return read_run(folder), read_request(folder)


def sweep(data: bytes, folder: Path) -> object:
    from cluster.sweep_file import SWEEP_FILE, read_sweep

    return read_sweep(_file(folder, SWEEP_FILE, data).parent)


def manifest(data: bytes, folder: Path) -> object:
    from training.manifest import MANIFEST, check_files, read_manifest

    found = read_manifest(_file(folder, MANIFEST, data).parent)
    check_files(folder, found)
    return found


SWEEP = b"""{"arguments": [], "directory": "/a",
 "elements": [{"name": "a", "values": {"lr": "1"}, "submit": ["x"], "launch": []}]}"""
TRAINER_TOML = (
    b'lr = 3e-4\nmax_steps = 5\nreport-to = ["none"]\n',
    b'[training]\npreset = "demo"\nfrom-scratch = true\n',
)

PARSERS = [
    Parser("nodelist", nodelist, (b"rack[1-2]n[01-02],login,gpu[7,9]-ib", b"n[000-999]")),
    Parser("counts", counts, (b"8(x2),4", b"1(x1000)")),
    Parser("hosts", hosts, (b"a:8,b:8", b"a, b.example.org:2")),
    Parser("hostfile", hostfile, (b"a slots=8\nb:2\n# c\nd slots=1 max-slots=2\n",)),
    Parser(
        "granted GPUs", granted_gpus, (b"JOB_GRES=gpu:3\n  Nodes=n[1-2] CPU_IDs=0-1 Mem=0 GRES=gpu:a100:2(IDX:0-1)\n",)
    ),
    Parser("grid", grid, (b"lr=1e-3,1e-4\nseed=1..3",)),
    Parser(
        "launcher's configuration",
        launcher_configuration,
        (b'[cluster]\nnodes = 2\nx = ["HF_HOME=/a"]\n[training]\nlr = 3e-4\nexperiment-name = "a"\n',),
    ),
    Parser("trainer's configuration", trainer_configuration, TRAINER_TOML),
    Parser("trainer's TOML", trainer_toml, TRAINER_TOML),
    Parser(
        "metrics",
        metrics,
        (
            b'{"step": 1, "loss": 2.5, "epoch": 0.1, "step_seconds": 0.5, "tokens_per_second": 9.0}\n',
            b'{"step": 1, "event": "resumed", "bit_exact": true}\n{"step": 2, "eval_loss": 1}\n{"step": 3, "lo',
        ),
    ),
    Parser(
        "run directory",
        run_directory,
        (
            b'{"step": 1, "loss": 2.5, "first_rank": 0, "busy_seconds": [1.0], "time": 1.0, "world_size": 2}\n',
            b'{"attempts": [{"attempt": 1, "started": 1, "verdict": {"kind": "hang"}, "accounting": {"queue": 1}}]}',
            b'{"hosts": [["n1", 8, 8, 64]], "config": {}, "world_size": 8}',
        ),
    ),
    Parser("sweep", sweep, (SWEEP,)),
    Parser("manifest", manifest, ()),
]


def named_errors() -> tuple[type[Exception], ...]:
    """The errors by which a reader may refuse."""
    from cluster.errors import ClusterError
    from training.errors import InputError
    from training.manifest import DamagedError

    return ClusterError, InputError, DamagedError


def read(parser: Parser, data: bytes, folder: Path, trace: bool) -> None:
    """Have it read these bytes.

    Raises:
        AssertionError: it took too long or, with `trace`, too much memory.
        Exception: whatever else it raises than a named error.
    """
    began = time.process_time()
    if trace:
        tracemalloc.start()
    try:
        parser.parse(data, folder)
    except named_errors():
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    seconds = time.process_time() - began
    assert trace or seconds <= MOST_SECONDS, f"{parser.name} took {seconds:.1f} s"
    assert peak <= MOST_BYTES, f"{parser.name} took {peak / 2**20:.0f} MB"


def seeds(parser: Parser) -> tuple[bytes, ...]:
    return parser.seeds or (whole_manifest(),)


def whole_manifest() -> bytes:
    from training.manifest import Manifest, Proof, render_manifest

    content: dict[str, Any] = {"step": 1, "samples": 2, "world_size": 1, "incarnation": 1, "held_out_loss": None}
    return render_manifest(Manifest(**content, seconds=0.1, weights_sha256="0", files={"a": Proof(1, "0")}))


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
