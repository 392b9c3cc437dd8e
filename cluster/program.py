"""The program that ranks run: checked before anything is queued or started, its interpreter made absolute.

Under mpirun PATH differs from the shell's, so that a bare ``python`` can be another interpreter in the rank.
"""

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import RequestError

_PYTHON = re.compile(r"python(3(\.\d+)?)?")


def resolve_program(program: Sequence[str]) -> list[str]:
    """The same command with an absolute executable; a bare ``python`` is this Python.

    Raises `RequestError` where executable, script or module do not exist.
    """
    if not program:
        raise RequestError("no program: put it after ' -- ', such as: -- python my_script.py")
    command, *arguments = program
    if _PYTHON.fullmatch(command):
        command = sys.executable
    found = shutil.which(command)
    if found is None:
        raise RequestError(f"the program {program[0]} does not exist or cannot be executed")
    if found == sys.executable or _PYTHON.fullmatch(os.path.basename(found)):
        _check_python_arguments(arguments)
    return [os.path.abspath(found), *arguments]


def _check_python_arguments(arguments: Sequence[str]) -> None:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument == "-m":
            if not _module_exists(following):
                raise RequestError(f"the module {following!r} does not exist (python -m {following})")
            return
        if argument == "-c":
            return
        if not argument.startswith("-"):
            if not Path(argument).is_file():
                raise RequestError(f"the script {argument} does not exist in {os.getcwd()}")
            return
    raise RequestError("no script or module after python: wanted python my_script.py or python -m my_module")


def _module_exists(name: str) -> bool:
    """Whether ``python -m name`` finds a module. Packages on the way are looked up, not imported."""
    top, *below = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:
        return False
    if spec is None or not below:
        return spec is not None
    relative = Path(*below)
    return any(
        Path(folder, relative).with_suffix(".py").is_file() or Path(folder, relative, "__main__.py").is_file()
        for folder in spec.submodule_search_locations or []
    )
