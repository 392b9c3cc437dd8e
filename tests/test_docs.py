"""What the documentation lists is what there is."""

import dataclasses

import pytest

from conftest import ROOT
from training.config import TrainConfig


@pytest.mark.parametrize("package", ["cluster", "training", "training.bench"])
def test_every_module_has_its_line_in_the_walk(package: str) -> None:
    walk = (ROOT / "docs/walk.md").read_text()
    rooms = walk[walk.index(f"## Rooms of `{package}`") :].split("\n## ")[0]

    listed = {line.split("`")[1] for line in rooms.splitlines() if line.startswith("| `")}

    assert listed == {path.stem for path in (ROOT / package.replace(".", "/")).glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_every_option_of_the_trainer_is_listed_with_its_default(field: "dataclasses.Field[object]") -> None:
    page = (ROOT / "docs/training.md").read_text()
    table = page[page.index("| option | default | meaning |") :].split("\n\n")[0]
    [row] = [line for line in table.splitlines() if line.startswith(f"| `--{field.name.replace('_', '-')}`")]

    default = row.split("|")[2].strip()

    value = " ".join(field.default) if isinstance(field.default, tuple) else field.default
    assert default == ("–" if value is None else "off" if value is False else f"`{value}`")
