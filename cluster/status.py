"""What became of a run: its attempts, their verdicts, and where the time went. Reads only; starts nothing.

python -m cluster.status                    the newest run in outputs/
python -m cluster.status smoke_mpi          outputs/smoke_mpi
python -m cluster.status /data/out/run7     a run directory
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import COMPLETE, RequestError
from cluster.goodput import Goodput, duration, goodput_lines, totals
from cluster.options import OptionParser, run
from cluster.rundir import DEFAULT_OUTPUT_DIR, launcher_holds
from cluster.runfile import read_json, read_run

USAGE = "python -m cluster.status [options] [RUN_DIR | EXPERIMENT]"


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    run_dir = find_run(options.run, Path(options.output_dir))
    try:
        report = describe(run_dir, read_run(run_dir), launcher_holds(run_dir))
    except ValueError as error:
        raise RequestError(f"{run_dir / 'run.json'} cannot be read: {error}") from error
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(*report_lines(report), sep="\n")
    return COMPLETE


def parser() -> OptionParser:
    options = OptionParser("python -m cluster.status", USAGE, str(__doc__))
    options.add_argument("run", nargs="?", metavar="RUN", help="run directory, or name of an experiment")
    options.add_argument("--json", action="store_true", help="everything as one JSON object")
    options.add_argument(
        "--output-dir",
        default=DEFAULT_OUTPUT_DIR,
        metavar="DIR",
        help=f"parent of the run directories (default: {DEFAULT_OUTPUT_DIR})",
    )
    return options


def find_run(given: str | None, output_dir: Path) -> Path:
    """The run directory that is meant, absolute. Raises `RequestError` where there is none."""
    if given is None:
        runs = sorted(output_dir.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise RequestError(f"no run in {output_dir.absolute()}: name a run directory, or give --output-dir")
        return runs[-1].parent.absolute()
    for candidate in (Path(given), output_dir / given):
        if (candidate / "run.json").exists():
            return candidate.absolute()
    import difflib

    known = [path.parent.name for path in output_dir.glob("*/run.json")]
    near = difflib.get_close_matches(given, known, 1)
    hint = f"did you mean {near[0]}?" if near else "wanted a directory with run.json, or an experiment's name"
    raise RequestError(f"no run {given}, neither here nor in {output_dir.absolute()}: {hint}")


def describe(run_dir: Path, run_file: Mapping[str, Any], held: bool) -> dict[str, Any]:
    """All that is shown, JSON-able. `state` is the newest verdict's kind, "running" or "unfinished"."""
    attempts = list(run_file["attempts"])
    newest = attempts[-1] if attempts else {}
    plan = read_json(run_dir / f"attempt-{newest.get('attempt', 0):04d}" / "plan.json") or {}
    return {
        "experiment": run_file["experiment"],
        "run_dir": str(run_dir),
        "state": _state(newest, held),
        "attempts": attempts,
        "goodput": totals(attempts).to_json(),
        "excluded_hosts": run_file["excluded_hosts"],
        "logs": plan.get("log_dir"),
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    lines = [f"{report['experiment']} · {report['state']} · {report['run_dir']}", ""]
    lines += attempt_table(report["attempts"], report["state"])
    goodput = report["goodput"]
    if shares := goodput_lines(Goodput(goodput["seconds"], goodput["attempts"], goodput["restarts"])):
        lines += ["", *shares]
    lines.append("")
    if report["excluded_hosts"]:
        lines.append(f"excluded hosts: {', '.join(report['excluded_hosts'])}")
    newest = (report["attempts"] or [{}])[-1].get("verdict") or {}
    if newest.get("next"):
        lines.append(f"next: {newest['next']}")
    lines.append(f"logs: {report['logs'] or report['run_dir']}")
    return lines


def attempt_table(attempts: Sequence[Mapping[str, Any]], state: str) -> list[str]:
    """One line an attempt: when, how long, which verdict, who is guilty, and from which step to which."""
    rows = [("attempt", "started", "length", "verdict", "guilty", "steps", "saved")]
    for attempt in attempts:
        verdict = attempt.get("verdict")
        said = (
            f"{verdict['kind']} ({verdict['status']})"
            if verdict
            else state
            if attempt is attempts[-1]
            else "unfinished"
        )
        steps = attempt.get("steps") or {}
        rows.append(
            (
                str(attempt["attempt"]),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt["started"])),
                duration(attempt["seconds"]) if "seconds" in attempt else "–",
                said,
                _guilty(verdict or {}),
                f"{_or_dash(steps.get('resumed'))} → {_or_dash(steps.get('last'))}" if steps else "–",
                _or_dash(steps.get("saved")),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _state(newest: Mapping[str, Any], held: bool) -> str:
    if held:
        return "running"
    verdict = newest.get("verdict")
    return str(verdict["kind"]) if verdict else "unfinished (its launcher has gone without a verdict)"


def _guilty(verdict: Mapping[str, Any]) -> str:
    if verdict.get("rank") is None:
        return verdict.get("host") or "–"
    gpu = f", GPU {verdict['gpu']}" if verdict.get("gpu") is not None else ""
    return f"rank {verdict['rank']} on {verdict['host']}{gpu}"


def _or_dash(value: int | None) -> str:
    return "–" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
