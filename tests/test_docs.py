"""What the documentation lists is what there is."""

import dataclasses

import pytest

from cluster import errors
from cluster.__main__ import VERBS
from conftest import ROOT
from training.config import TrainConfig
from training.evaluate_model import EvaluateOptions
from training.export import ExportOptions
from training.generate import GenerateOptions


@pytest.mark.parametrize("package", ["cluster", "training", "training.bench"])
def test_every_module_has_its_line_in_the_walk(package: str) -> None:
    walk = (ROOT / "docs/walk.md").read_text()
    rooms = walk[walk.index(f"## Rooms of `{package}`") :].split("\n## ")[0]

    listed = {line.split("`")[1] for line in rooms.splitlines() if line.startswith("| `")}

    assert listed == {path.stem for path in (ROOT / package.replace(".", "/")).glob("*.py")} - {"__init__"}


def test_every_verb_and_every_exit_status_stands_in_the_tables_of_exit_statuses() -> None:
    page = (ROOT / "docs/environment.md").read_text().partition("\n## Exit statuses\n")[2]
    first = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    statuses = {value for name, value in vars(errors).items() if name.isupper()}

    assert {int(cell) for cell in first if cell.isdecimal()} == statuses
    assert [cell for cell in first if cell.startswith("`") and " " not in cell] == [f"`{verb}`" for verb in VERBS]


def shown(default: object) -> str:
    """A default as the tables of options have it."""
    value = " ".join(default) if isinstance(default, tuple) else default
    return "–" if value is None else "off" if value is False else f"`{value}`"


def defaults(table: str) -> dict[str, str]:
    """Of every option of a table of options, by the option's name."""
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `--")]
    return {row[1].split("`")[1]: row[2].strip() for row in rows}


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_every_option_of_the_trainer_is_listed_with_its_default(field: "dataclasses.Field[object]") -> None:
    page = (ROOT / "docs/training.md").read_text()
    table = page[page.index("| option | default | meaning |") :].split("\n\n")[0]

    assert defaults(table)[f"--{field.name.replace('_', '-')}"] == shown(field.default)


@pytest.mark.parametrize(
    ("section", "options"),
    [("Export", ExportOptions), ("Generate", GenerateOptions), ("Evaluate", EvaluateOptions)],
)
def test_every_option_of_the_commands_for_models_is_listed_with_its_default(section: str, options: type) -> None:
    page = (ROOT / "docs/models.md").read_text()
    table = page[page.index(f"\n## {section}\n") :].split("| option | default | meaning |")[1].split("\n\n")[0]
    by_name = [each for each in dataclasses.fields(options) if "Positional" not in str(each.type)]

    assert defaults(table) == {f"--{each.name.replace('_', '-')}": shown(each.default) for each in by_name}
