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
_TAKE_A_VALUE = ("-W", "-X", "--check-hash-based-pycs")


def is_python(command: str) -> bool:
    """Whether it is a Python, by its name."""
    return bool(_PYTHON.fullmatch(os.path.basename(command)))


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Python's own flags with their values, and what follows: a script, ``-m``, ``-c`` or ``-``, and its arguments."""
    at = 0
    while at < len(arguments) and arguments[at].startswith("-") and arguments[at] not in ("-", "-m", "-c"):
        at += 2 if arguments[at] in _TAKE_A_VALUE else 1
    return list(arguments[:at]), list(arguments[at:])


def resolve_program(program: Sequence[str], wdir: str = ".") -> list[str]:
    """The same command with an absolute executable; a bare ``python`` is this Python. Ranks run it in `wdir`.

    Raises `RequestError` where executable, script or module do not exist. Which modules another Python has installed
    is not known here.
    """
    if not os.path.isdir(wdir):
        raise RequestError(f"--wdir {wdir} is no directory")
    if not program:
        raise RequestError("no program: put it after ' -- ', such as: -- python my_script.py")
    command, *arguments = program
    if _PYTHON.fullmatch(command):
        command = sys.executable
    found = shutil.which(command)
    if found is None:
        raise RequestError(f"the program {program[0]} does not exist or cannot be executed")
    found = os.path.abspath(found)
    is_this_python = found == sys.executable
    if is_this_python or is_python(found):
        _check_python_arguments(arguments, Path(wdir).absolute(), is_this_python)
    return [found, *arguments]


def _check_python_arguments(arguments: Sequence[str], wdir: Path, is_this_python: bool) -> None:
    _, program = split_flags(arguments)
    if not program or program[0] == "-":
        raise RequestError("no script or module after python: wanted python my_script.py or python -m my_module")
    first, following = program[0], "".join(program[1:2])
    if first == "-m" and (is_this_python or not following) and not _module_exists(following, wdir):
        raise RequestError(f"the module {following!r} does not exist (python -m {following})")
    if first not in ("-m", "-c") and not os.path.exists(wdir / first):
        raise RequestError(f"the script {first} does not exist in {wdir}")


def _module_exists(name: str, wdir: Path) -> bool:
    """Whether ``python -m name`` finds a module. Packages on the way are looked up, not imported."""
    top, *below = name.split(".")
    if _is_module(wdir, Path(*name.split("."))):
        return True
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:
        return False
    if spec is None or not below:
        return spec is not None
    return any(_is_module(Path(folder), Path(*below)) for folder in spec.submodule_search_locations or [])


def _is_module(folder: Path, relative: Path) -> bool:
    return os.path.isfile(folder / f"{relative}.py") or os.path.isfile(folder / relative / "__main__.py")
