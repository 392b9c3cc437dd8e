"""`python -m cluster VERB`: one command line for all of it."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from cluster import environment
from cluster.__main__ import VERBS, help_text, main
from cluster.completion import bash_script
from cluster.options import run
from conftest import ROOT


def test_the_help_fits_one_screen() -> None:
    lines = help_text().splitlines()

    assert len(lines) < 24
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=str)
def test_without_a_verb_the_help_is_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0

    assert capsys.readouterr().out == help_text() + "\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_command_and_a_line_of_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(import_module(f"cluster.{verb}").main)

    with pytest.raises(SystemExit, match=r"^0$"):
        main([verb, "--help"])
    assert capsys.readouterr().out.startswith("usage: python -m cluster")


@pytest.mark.parametrize(
    ("given", "words"), [("statsu", "did you mean status?"), ("zzz", "wanted one of submit, sweep, launch, ")]
)
def test_an_unknown_verb_is_an_error_that_says_what_was_probably_meant(
    given: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([given]) == 64

    assert f"error: no verb '{given}': {words}" in capsys.readouterr().err


def test_the_completion_is_printed_for_bash_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0

    assert capsys.readouterr().out == bash_script()


def test_the_help_imports_no_module_of_a_verb() -> None:
    code = "import sys; from cluster.__main__ import main; main(['--help']); print(sorted(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)

    loaded = done.stdout.splitlines()[-1]
    assert "cluster.__main__" in loaded
    for module in ("argparse", "cluster.options", *(f"cluster.{verb}" for verb in VERBS)):
        assert f"'{module}'" not in loaded


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"submit", "launch", "bench"}))
def test_the_help_of_a_verb_fits_one_screen_unless_it_lists_the_options_of_mpirun(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 30


def test_one_argument_too_many_is_an_error_that_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "a", "b"]) == 64
    assert capsys.readouterr().err == "error: unknown option b: see python -m cluster status --help\n"


def test_the_console_script_is_this_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

    module, _, function = scripts["slurm-mpi-train"].partition(":")

    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["re"], ["resubmit"]),
        (["status", "--w"], ["--watch"]),
        (["submit", "--spare"], ["--spare-nodes"]),
        (["cancel", "smoke_"], ["smoke_a", "smoke_b", "smoke_sweep", "smoke_sweep/lr=1e-3", "smoke_sweep/lr=3e-3"]),
        (["status", "smoke_a"], ["smoke_a"]),
        (["sweep", "smoke"], ["smoke_sweep"]),
        (["logs", "smoke_sweep/"], ["smoke_sweep/lr=1e-3", "smoke_sweep/lr=3e-3"]),
        (["logs", "smoke_sweep/lr=1"], ["1e-3"]),
        (["submit", "smoke"], []),
        (["bench", "--ro"], ["--rounds"]),
    ],
    ids=" ".join,
)
def test_bash_completes_verbs_options_and_runs(typed: list[str], offered: list[str], tmp_path: Path) -> None:
    for name, mark in (
        ("smoke_a", "run.json"),
        ("smoke_b", "request.json"),
        ("smoke_c", "other"),
        ("smoke_sweep", "sweep.json"),
        ("smoke_sweep/lr=1e-3", "run.json"),
        ("smoke_sweep/lr=3e-3", "request.json"),
    ):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / mark).touch()
    words = " ".join(["slurm-mpi-train", *typed])
    line = f"COMP_LINE='{words}'; COMP_POINT={len(words)}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}"
    ask = f"{line}; _slurm_mpi_train; printf '%s\\n' \"${{COMPREPLY[@]}}\""

    done = subprocess.run(
        ["bash", "-c", f"{bash_script()}\n{ask}"], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ)
    )

    assert done.stderr == ""
    assert done.stdout.split() == offered


def test_ranks_find_the_project_unless_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.with_project({"PYTHONPATH": "/mine"}) == {"PYTHONPATH": f"{ROOT}:/mine"}

    monkeypatch.setattr(environment, "__file__", "/env/lib/python3.11/site-packages/cluster/environment.py")
    assert environment.with_project({"PYTHONPATH": "/mine"}) == {"PYTHONPATH": "/mine"}


def test_ctrl_c_ends_a_command_with_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    assert run(interrupted, []) == 130
    assert capsys.readouterr().err == "interrupted\n"
