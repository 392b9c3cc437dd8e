"""What models, data and names from elsewhere say cannot steer the terminal that shows it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import strings

import cluster.terminal
from conftest import ROOT
from training.command import refuse, run_command
from training.display import Display
from training.errors import INPUT_ERROR, InputError
from training.ranks import RankInfo
from training.summary import summary_text
from training.terminal import plain, plain_on_a_terminal

STRINGS = strings(10_000)
HOSTILE = "\x1b]0;x\x07\x1b[2J\x9b2J\u202ea\tb"
HARMLESS = "?]0;x??[2J?2J?a\tb"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_rule_is_the_launchers() -> None:
    assert [plain(text) for text in STRINGS] == [cluster.terminal.plain(text) for text in STRINGS]


def test_a_result_is_plain_on_a_terminal_and_as_it_is_elsewhere() -> None:
    assert plain_on_a_terminal(HOSTILE, Terminal()) == HARMLESS
    assert plain_on_a_terminal(HOSTILE, io.StringIO()) == HOSTILE


def test_a_terminal_that_knows_ascii_alone_ends_neither_the_trainer_nor_its_launcher(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "cluster.launch", "--cluster", "local", "--ranks-per-node", "1", "--"]
    train = [
        "python",
        "-m",
        "training.train_llm",
        "-e",
        "a",
        "--preset",
        "smoke",
        "--max-steps",
        "1",
        "--device",
        "cpu",
    ]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*launch, *train], cwd=tmp_path, env=environ, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 1/1 ? epoch " in done.stdout
    assert "?? complete ? exit status 0 ? attempt 1 ? " in done.stdout


def test_an_error_that_quotes_a_model_or_a_dataset_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise InputError(HOSTILE)

    assert run_command(work) == refuse(InputError(HOSTILE), RankInfo("single")) == INPUT_ERROR

    assert capsys.readouterr().err == f"error: {HARMLESS}\n" * 2


@pytest.mark.parametrize("bar", [False, True])
def test_a_line_of_the_training_is_plain(bar: bool, capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(0, 1, bar)

    display.line(HOSTILE)
    display.close()

    assert HARMLESS.expandtabs() in capsys.readouterr().out.expandtabs()


def test_the_summarys_samples_are_plain_and_one_line_each() -> None:
    samples = [{"prompt": text, "answer": text, "expected": text} for text in STRINGS]
    figures = dict.fromkeys(("tokens_per_second", "first_loss", "final_loss", "eval_loss", "perplexity"))
    whole = {"steps": 1, "epochs": 1.0, "world_size": 1, "device": "cpu", "seconds": 1.0, "attempt_seconds": 2.0}
    places = {name: str(Path("/a")) for name in ("checkpoint", "metrics", "run_directory")}

    text = summary_text({**figures, **whole, **places, "bit_exact": True, "skipped_steps": 0, "samples": samples})

    assert text == plain(text)
    assert text.count("\n") == summary_text(
        {**figures, **whole, **places, "bit_exact": True, "skipped_steps": 0, "samples": []}
    ).count("\n") + 3 * len(samples)
