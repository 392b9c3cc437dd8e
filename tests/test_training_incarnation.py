"""Every start of training has a number of its own, and the later one wins."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from training.incarnation import Claim, claim_incarnation, newest_incarnation, overtaken_by, read_claims

CLAIM_MANY = """
import sys
from pathlib import Path
from training.incarnation import claim_incarnation
for _ in range(25):
    print(claim_incarnation(Path(sys.argv[1]), 0))
"""


def test_the_numbers_count_up_and_say_who_went_on_from_where(tmp_path: Path):
    assert newest_incarnation(tmp_path) == 0
    assert [claim_incarnation(tmp_path, step) for step in (0, 4, 12)] == [1, 2, 3]
    assert newest_incarnation(tmp_path) == 3
    claim = read_claims(tmp_path)[1]
    assert (claim.incarnation, claim.resumed_step) == (2, 4)
    assert (claim.host, claim.pid) == (socket.gethostname(), os.getpid())
    assert sorted(os.listdir(tmp_path / "incarnations")) == ["000001.json", "000002.json", "000003.json"]


def test_a_leftover_that_is_linked_to_a_claim_does_not_change_that_claim(tmp_path: Path):
    claim_incarnation(tmp_path, 0)
    folder = tmp_path / "incarnations"
    # Killed between the link and the removal; the next start has the same number of its process in a container.
    os.link(folder / "000001.json", folder / f".{socket.gethostname()}.{os.getpid()}")
    claim_incarnation(tmp_path, 4)
    assert [(claim.incarnation, claim.resumed_step) for claim in read_claims(tmp_path)] == [(1, 0), (2, 4)]


def test_of_starts_at_the_same_moment_each_has_its_own_number(tmp_path: Path):
    command = [sys.executable, "-c", CLAIM_MANY, str(tmp_path)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
    numbers = [int(line) for start in starts for line in start.communicate(timeout=60)[0].splitlines()]
    assert sorted(numbers) == list(range(1, 101))
    assert [claim.incarnation for claim in read_claims(tmp_path)] == list(range(1, 101))


def test_a_claim_that_cannot_be_read_still_counts_as_the_newest(tmp_path: Path):
    claim_incarnation(tmp_path, 0)
    (tmp_path / "incarnations" / "000002.json").write_text("")
    assert newest_incarnation(tmp_path) == 2
    assert len(read_claims(tmp_path)) == 1
    assert claim_incarnation(tmp_path, 0) == 3


def test_a_file_system_without_hard_links_serves_too(tmp_path: Path, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert [claim_incarnation(tmp_path, 0), claim_incarnation(tmp_path, 7)] == [1, 2]
    assert json.loads((tmp_path / "incarnations" / "000002.json").read_text())["resumed_step"] == 7


def test_a_checkpoint_is_overtaken_by_a_later_start_from_before_it():
    claims = [Claim(1, 0), Claim(2, 8), Claim(3, 8)]
    assert overtaken_by(claims, 1, 8) is None
    assert overtaken_by(claims, 1, 9) == Claim(2, 8)
    assert overtaken_by(claims, 2, 9) == Claim(3, 8)
    assert overtaken_by(claims, 3, 9) is None
