"""How a command ends."""

import socket

import pytest

from training.command import run_command, run_on_ranks
from training.errors import AgreedError, InputError, NodeError

SECOND_OF_TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def fails(error: BaseException):
    def work(*ranks: object) -> None:
        raise error

    return work


def test_a_place_that_cannot_be_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys):
    for name, value in {**SECOND_OF_TWO, "RANK": "5"}.items():
        monkeypatch.setenv(name, value)
    assert run_on_ranks(fails(AssertionError())) == 64
    assert capsys.readouterr().err.startswith("error: RANK=5 but WORLD_SIZE=2: a rank must be below its size; ")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("no such file"), 64, f"error: rank 1 on {socket.gethostname()}: no such file\n"),
        (AgreedError("no data"), 64, ""),
        (NodeError("n2 is slow", speaker=1), 71, "error: n2 is slow\n"),
        (NodeError("n1 is slow", speaker=0), 71, ""),
    ],
    ids=["the request is wrong here", "it is wrong on all ranks", "this rank's host is unfit", "another host is unfit"],
)
def test_of_several_ranks_the_one_that_knows_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys, error: Exception, status: int, said: str
):
    for name, value in {**SECOND_OF_TWO, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "5001"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert run_on_ranks(fails(error)) == status
    assert capsys.readouterr().err == said


def test_an_interruption_says_what_it_leaves(capsys):
    assert run_command(fails(KeyboardInterrupt()), "nothing was written") == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
