"""The program is checked before anything is queued."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cluster.errors import RequestError
from cluster.program import resolve_program
from stand_ins import stand_ins


def test_a_bare_python_becomes_this_python(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("")

    assert resolve_program(["python", str(script), "--lr", "1"]) == [sys.executable, str(script), "--lr", "1"]
    assert resolve_program(["python3", "-u", "-m", "json.tool"]) == [sys.executable, "-u", "-m", "json.tool"]


def test_script_and_module_are_looked_for_where_the_ranks_will_run(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__main__.py").write_text("")

    assert resolve_program(["python", "s.py"], str(tmp_path))[1:] == ["s.py"]
    assert resolve_program(["python", "-m", "pkg"], str(tmp_path))[1:] == ["-m", "pkg"]
    with pytest.raises(RequestError, match=r"s\.py does not exist in"):
        resolve_program(["python", "s.py"])


@pytest.mark.parametrize("flags", [["-u", "-W", "ignore"], ["-X", "dev"], ["-Wignore", "-Xdev"]], ids=" ".join)
def test_pythons_own_flags_and_their_values_are_no_script(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("")

    assert resolve_program(["python", *flags, "s.py"], str(tmp_path))[1:] == [*flags, "s.py"]
    with pytest.raises(RequestError, match=r"the script none\.py does not exist"):
        resolve_program(["python", *flags, "none.py"], str(tmp_path))


def test_another_program_is_found_on_path() -> None:
    assert resolve_program(["sh", "-c", "true"])[0].endswith("/sh")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ([], "no program: put it after ' -- '"),
        (["no-such-program"], "the program no-such-program does not exist"),
        (["python", "no_such_script.py"], r"the script no_such_script\.py does not exist in /"),
        (["python", "-m", "no_such_module"], "the module 'no_such_module' does not exist"),
        (["python", "-m", "training.no_such_module"], "the module 'training.no_such_module' does not exist"),
        (["python", "-m", ".a"], "the module '.a' does not exist"),
        (["python", "-m", ""], "the module '' does not exist"),
        (["python"], "no script or module after python"),
        (["python", "-W", "ignore"], "no script or module after python"),
        (["python", "-", "s.py"], "no script or module after python"),
    ],
)
def test_a_program_that_does_not_exist_is_refused(program: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolve_program(program)


def test_a_module_deep_in_a_package_is_found_without_importing_the_package() -> None:
    assert resolve_program(["python", "-m", "hypothesis.extra.cli"])[-1] == "hypothesis.extra.cli"
    assert resolve_program(["python", "-m", "torch.distributed.run"])[-1] == "torch.distributed.run"
    assert "torch.distributed.run" not in sys.modules


def test_what_another_python_has_installed_is_not_known_here(tmp_path: Path) -> None:
    stand_ins(tmp_path, python="exit")
    python = f"{tmp_path}/python"

    assert resolve_program([python, "-m", "installed_there.train"]) == [python, "-m", "installed_there.train"]
    with pytest.raises(RequestError, match="the module '' does not exist"):
        resolve_program([python, "-m"])
    with pytest.raises(RequestError, match=r"the script none\.py does not exist"):
        resolve_program([python, "none.py"])


def test_this_python_by_another_path_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(RequestError, match="the module 'no_such_module' does not exist"):
        resolve_program([os.path.relpath(sys.executable), "-m", "no_such_module"])


def test_a_module_that_python_knows_without_a_place_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typed_in", ModuleType("typed_in"))  # as the __main__ of `python -c`

    with pytest.raises(RequestError, match="the module 'typed_in' does not exist"):
        resolve_program(["python", "-m", "typed_in"])
