"""`sweep.json`: what a sweep was asked for, and what each of its runs is.

    {"arguments": ["--grid", "lr=1e-4,3e-4", …], "directory": "/home/you/project",
     "elements": [{"name": "lr=1e-4", "values": {"lr": "1e-4"}, "submit": […], "launch": […]}, …]}

It lies in the parent of its runs' directories. An element keeps its place: a job array that waits in the queue means
its elements by their indexes. Its owner's alone (0600), like `request.json`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cluster.errors import LauncherError, MayBeQueued
from cluster.run_file import read_json, write_json

SWEEP_FILE = "sweep.json"


class Element(NamedTuple):
    """One run of a sweep: its name, its place in the grid, the words of `cluster.submit` and of `cluster.launch`."""

    name: str
    values: dict[str, str]
    submit: list[str]
    launch: list[str]


class Sweep(NamedTuple):
    """`directory` is absolute, that of the sweep; `given_in` the one in which `arguments` were given."""

    directory: Path
    arguments: list[str]
    given_in: str
    elements: list[Element]

    @property
    def options(self) -> list[str]:
        """Those of the grid."""
        return list(self.elements[0].values)

    @property
    def run_dirs(self) -> list[Path]:
        return [self.directory / element.name for element in self.elements]


def read_sweep(directory: Path) -> Sweep | None:
    """The sweep of this directory; None where it is none. Raises `LauncherError` for a damaged file."""
    try:
        data = read_json(directory / SWEEP_FILE)
        if data is None:
            return None
        elements = [Element(**element) for element in data["elements"]]
        return Sweep(directory.absolute(), data["arguments"], data["directory"], elements)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LauncherError(f"{directory / SWEEP_FILE} cannot be read: {error}") from error


def find_sweep(given: str, output_dir: Path) -> Sweep | None:
    """The sweep of that name or directory; None where there is none."""
    return read_sweep(Path(given)) or read_sweep(output_dir / given)


def all_sweeps(output_dir: Path) -> list[Path]:
    """The directories of the sweeps in a directory, absolute, by name."""
    return sorted(path.parent for path in output_dir.absolute().glob(f"*/{SWEEP_FILE}"))


@contextmanager
def written(sweep: Sweep) -> Iterator[None]:
    """The file is there for the jobs that will read it; after an error it is as it was, unless they may be queued."""
    path = sweep.directory / SWEEP_FILE
    before = path.read_bytes() if path.exists() else None
    elements = [element._asdict() for element in sweep.elements]
    write_json(path, {"arguments": sweep.arguments, "directory": sweep.given_in, "elements": elements})
    try:
        yield
    except MayBeQueued:
        raise
    except BaseException:
        path.unlink() if before is None else path.write_bytes(before)
        raise


def extended(before: Sequence[Element], now: Sequence[Element]) -> list[Element]:
    """All elements, those from before in their places, as they are asked for now."""
    asked = {element.name: element for element in now}
    kept = [asked.pop(element.name, element) for element in before]
    return [*kept, *asked.values()]
