"""Which node does not fit the others, before any rank starts there."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from cluster.preflight import compare, node_facts, sources_hash

GOOD = {
    "python": "3.11.7",
    "package": "0.1.0",
    "sources": "aaaa",
    "torch": "2.13.0",
    "mpirun": "5.0.11",
    "free": {"/out/a": 10**12, "/tmp": 10**12},
    "time": 1000.0,
}


def not_installed(name: str) -> str:
    raise PackageNotFoundError(name)


def told(**n2: Any) -> tuple[list[tuple[str, str]], list[str]]:
    return compare({"n1": GOOD, "n2": {**GOOD, **n2}}, {"n1": 1000.1, "n2": 1000.1})


def test_equal_nodes_pass_without_a_word() -> None:
    assert told() == ([], [])


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"torch": "2.11.0"}, "has torch 2.11.0, n1 has 2.13.0: the same on all nodes is wanted"),
        ({"torch": None}, "has torch not at all, n1 has 2.13.0: the same on all nodes is wanted"),
        ({"python": "3.12.1"}, "has Python 3.12.1, n1 has 3.11.7: the same on all nodes is wanted"),
        ({"mpirun": "4.1.8"}, "has Open MPI 4.1.8, n1 has 5.0.11: the same on all nodes is wanted"),
        (
            {"sources": "bbbb"},
            "has other files of the package cluster than n1 (bbbb and aaaa): one copy for all nodes",
        ),
    ],
    ids=str,
)
def test_a_node_with_another_version_is_unfit_and_both_values_are_said(facts: dict[str, Any], sentence: str) -> None:
    assert told(**facts) == ([("n2", sentence)], [])


def test_a_node_that_differs_in_everything_is_named_once() -> None:
    unfit, _ = told(python="3.12.1", torch="2.11.0")

    assert [host for host, _ in unfit] == ["n2"]


def test_a_clock_that_is_off_is_a_warning() -> None:
    assert told(time=990.0) == ([], ["the clock of n2 is 10 s behind the launcher's: look at its NTP"])
    assert told(time=1004.0) == ([], [])


def test_a_nearly_full_folder_is_a_warning_and_a_shared_one_is_told_once() -> None:
    full = {**GOOD, "free": {"/out/a": 50 * 2**20, "/tmp": 10**12}}

    assert compare({"n1": full, "n2": full}, {}) == ([], ["/out/a on n1 has only 50 MB free: df -h /out/a"])


def test_what_a_node_says_of_itself_can_be_sent_and_names_torch_without_importing_it(tmp_path: Path) -> None:
    facts = json.loads(json.dumps(node_facts(tmp_path, {"OMPI_VERSION": "5.0.11", "TMPDIR": "/nowhere"})))

    assert facts["torch"].startswith("2.")
    assert facts["mpirun"] == "5.0.11"
    assert facts["free"][str(tmp_path)] > 0
    assert facts["free"]["/nowhere"] is None


def test_a_package_that_is_not_installed_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", not_installed)

    assert node_facts(tmp_path, {})["torch"] is None


def test_one_changed_byte_of_the_sources_changes_their_hash(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = sources_hash(tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")

    assert sources_hash(tmp_path) != before


def test_the_odd_one_of_several_is_unfit_also_where_it_is_the_first() -> None:
    facts = {"n1": {**GOOD, "torch": "2.12.0"}, "n2": GOOD, "n3": GOOD}

    unfit, _ = compare(facts, dict.fromkeys(facts, 1000.0))

    assert unfit == [("n1", "has torch 2.12.0, n2 has 2.13.0: the same on all nodes is wanted")]
