"""`docs/reference.md`: every option, status, file, variable and metric, as the code has them.

    .venv/bin/python tests/reference.py      writes the page

`tests/test_docs.py` holds the page to the code.
"""

import argparse
import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cluster import environment, errors, rundir, verdict
from cluster.__main__ import VERBS
from cluster.options import OptionParser, add_place_options
from training.bench.options import parser as bench_parser
from training.config import TrainConfig
from training.evaluate_model import EvaluateOptions
from training.export import ExportOptions
from training.generate import GenerateOptions
from training.metrics import COLUMNS
from training.presets import PRESETS
from training.ranks import LAUNCHERS
from training.report.__main__ import ReportOptions
from training.run_directory import RunDirectory

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference.md"
HEAD = """\
# Reference

Every option, exit status, file, variable and metric, written from the code by `make pages`. A test compares it.
Each command says the same with `--help`.
"""
PLACED = ("submit", "launch", "sweep", "explain", "bench")
"""Verbs that start ranks, or say how."""
LIKE_SUBMIT = ("sweep", "explain")
TRAINER_COMMANDS = {
    "training.train_llm": TrainConfig,
    "training.export": ExportOptions,
    "training.generate": GenerateOptions,
    "training.evaluate_model": EvaluateOptions,
    "training.report": ReportOptions,
}


def page() -> str:
    return "\n".join(
        [
            HEAD,
            "## `python -m cluster`\n",
            *cluster_commands(),
            "## `python -m training.…`\n",
            *training_commands(),
            "## Exit statuses\n",
            "What to do about each stands with the [verdicts](environment.md#exit-statuses).\n",
            *table("name", "status", "meaning", rows=statuses()),
            f"Verdicts: {listed(verdict_kinds())}.\n",
            "## Files of the run directory\n",
            *run_files(),
            "## Variables\n",
            *variables(),
            "## Metrics\n",
            "Columns of `metrics.jsonl`. A number that is not finite is `null`.\n",
            *table("column", "meaning", rows=((f"`{name}`", meaning) for name, meaning in COLUMNS.items())),
        ]
    )


def table(*head: str, rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in lines), ""]


def options_table(rows: Iterable[Iterable[str]]) -> list[str]:
    return table("option", "default", "meaning", rows=rows)


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def cluster_commands() -> Iterator[str]:
    """Each verb; the options that several take stand once, before them."""
    parsers = {verb: import_module(f"cluster.{verb}").parser() for verb in VERBS}
    common = OptionParser("", "", "")
    add_place_options(common)
    yield "### Where and how ranks start\n"
    yield f"Options of {', '.join(f'`{verb}`' for verb in PLACED)}.\n"
    yield from options_table(of_actions(common))
    for verb, what in VERBS.items():
        known = common if verb in PLACED else None
        also = ""
        if verb in LIKE_SUBMIT:
            known, also = parsers["submit"], " Also all options of `submit`."
        yield f"### {verb}\n"
        yield f"{what[0].upper()}{what[1:]}.{also}\n"
        yield from options_table(of_actions(parsers[verb], known))


def of_actions(
    parser: argparse.ArgumentParser, known: argparse.ArgumentParser | None = None
) -> Iterator[tuple[str, str, str]]:
    """Rows of a parser's options without those of the known one."""
    without = {"help", *(action.dest for action in known._actions)} if known else {"help"}
    for action in parser._actions:
        if action.dest in without:
            continue
        names = [f"`{name}`" for name in action.option_strings] or [f"`{action.metavar or action.dest}`"]
        meaning = re.sub(r" \(%\(default\)\w\)", "", action.help or "as in sbatch")
        choices = [] if action.choices is None or action.metavar else [f"`{choice}`" for choice in action.choices]
        yield ", ".join(names) + (" " + ", ".join(choices) if choices else ""), shown(action.default), meaning


def training_commands() -> Iterator[str]:
    for command, options in TRAINER_COMMANDS.items():
        yield f"### {command}\n"
        yield from options_table(of_fields(options))
        if options is TrainConfig:
            yield "`training.prepare` and `training.check` take the same. Presets change these defaults:\n"
            yield from preset_table()
    yield "### training.bench\n"
    yield from options_table(of_actions(bench_parser()))


def preset_table() -> list[str]:
    names = list(dict.fromkeys(name for preset in PRESETS.values() for name in preset))
    rows = [[f"`{flag(name)}`", *(shown(preset.get(name)) for preset in PRESETS.values())] for name in names]
    return table("option", *(f"`{preset}`" for preset in PRESETS), rows=rows)


def of_fields(options: type[Any]) -> Iterator[tuple[str, str, str]]:
    """Rows of a dataclass whose fields are options, with the docstrings below them."""
    said = docstrings(options)
    for each in fields(options):
        meaning = " ".join(said[each.name].split())
        if "Positional" in str(each.type):
            yield f"`{metavar(each)}`", "–", meaning
            continue
        names = [flag(each.name), *aliases(each)]
        if each.type is bool:
            names.append(flag(f"no-{each.name}"))
        choices = " " + ", ".join(f"`{choice}`" for choice in literals(each.type)) if literals(each.type) else ""
        yield ", ".join(f"`{name}`" for name in names) + choices, shown(each.default), meaning


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def aliases(field: "Field[Any]") -> list[str]:
    return [alias for extra in extras(field) for alias in getattr(extra, "aliases", None) or ()]


def metavar(field: "Field[Any]") -> str:
    return next(extra.metavar for extra in extras(field) if getattr(extra, "metavar", None))


def extras(field: "Field[Any]") -> tuple[Any, ...]:
    return getattr(field.type, "__metadata__", ())


def literals(kind: Any) -> list[str]:
    """The words that an option takes, where it takes words of a list."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    return [word for part in get_args(kind) for word in literals(part)]


def shown(default: object) -> str:
    """A default as the tables have it."""
    if default is None or default is MISSING or default == [] or default == ():
        return "–"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{' '.join(map(str, default)) if isinstance(default, list | tuple) else default}`"


# ── what the code says of itself ──────────────────────────────────────────────────────────────────


def docstrings(owner: Any) -> dict[str, str]:
    """The string below each assignment of a class or module, by the name that is assigned."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    body = tree.body[0].body if isinstance(owner, type) and isinstance(tree.body[0], ast.ClassDef) else tree.body
    said = {}
    for statement, below in pairwise(body):
        match statement:
            case ast.AnnAssign(target=target) | ast.Assign(targets=[target]):
                pass
            case _:
                continue
        if isinstance(target, ast.Name) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            said[target.id] = str(below.value.value)
    return said


def statuses() -> Iterator[tuple[str, str, str]]:
    for name, meaning in docstrings(errors).items():
        yield f"`{name}`", str(getattr(errors, name)), " ".join(meaning.split())


def verdict_kinds() -> list[str]:
    """The words of `cluster.verdict`'s constants; `AGAIN` is a sentence."""
    return [
        word for name, word in vars(verdict).items() if name.isupper() and isinstance(word, str) and name != "AGAIN"
    ]


def run_files() -> Iterator[str]:
    """The launcher's files as `cluster.rundir` lays them out, then the trainer's."""
    yield "The launcher's:\n"
    layout = [line for line in str(rundir.__doc__).splitlines() if line.startswith("    ")]
    yield f"```text\n{textwrap.dedent(chr(10).join(layout))}\n```\n"
    yield "The trainer's, and those of what reads a run, beside them:\n"
    run = RunDirectory(Path("RUN"))
    paths = {name: value for name, value in vars(RunDirectory).items() if isinstance(value, property)}
    rows = ((f"`{getattr(run, name).relative_to(run.root)}`", str(value.__doc__)) for name, value in paths.items())
    yield from table("file", "what", rows=rows)


def variables() -> Iterator[str]:
    """What crosses mpirun, what tells a rank its place, and what else the code looks at."""
    yield "What each rank is given stands in [the environment contract](environment.md#what-each-rank-finds).\n"
    yield from table(
        "what mpirun is told",
        "names",
        rows=[
            ["forwarded, by name", listed(environment.FORWARDED_NAMES)],
            ["forwarded, by how they begin", listed(environment.FORWARDED_PREFIXES)],
            ["never forwarded: each node has its own", listed(environment.NODE_LOCAL)],
            ["taken out, by name", listed(environment.STALE_NAMES)],
            ["taken out, by how they begin", listed(environment.STALE_PREFIXES)],
        ],
    )
    yield "Where the trainer finds its place, innermost first:\n"
    yield from table(
        *("started by", "rank", "ranks", "on its host", "ranks there"),
        rows=(
            [
                each.name,
                *(
                    f"`{name}`"
                    for name in (each.rank, each.world_size, each.local_rank, each.local_world_size or each.local_count)
                ),
            ]
            for each in LAUNCHERS
        ),
    )
    readers: dict[str, set[str]] = {}
    for path in [*(ROOT / "cluster").glob("*.py"), *(ROOT / "training").rglob("*.py")]:
        for name in variables_read(path):
            readers.setdefault(name, set()).add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    rows = ([f"`{name}`", listed(readers[name])] for name in sorted(readers))
    yield from table("variable that is looked at", "by", rows=rows)


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def variables_read(path: Path) -> Iterator[str]:
    """Names that a file asks an `environ` for, written there or in a constant above."""
    tree = ast.parse(path.read_text())
    constants = {
        statement.targets[0].id: statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=source, attr="get" | "pop"), args=[key, *_]):
                pass
            case ast.Subscript(value=source, slice=key, ctx=ast.Load()):
                pass
            case ast.Compare(left=key, comparators=[source]):
                pass
            case _:
                continue
        if ast.unparse(source).endswith("environ"):
            name = constants.get(key.id) if isinstance(key, ast.Name) else getattr(key, "value", None)
            if isinstance(name, str):
                yield name


if __name__ == "__main__":
    PAGE.write_text(page())
