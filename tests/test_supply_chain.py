"""What is pinned, the hashes of it, and its licences."""

import re

import pytest

from conftest import ROOT
from lock import NO_HASH, hashed, licence, read_pins

PINS = read_pins((ROOT / "constraints.txt").read_text())
ROWS = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", (ROOT / "docs/licences.md").read_text(), re.MULTILINE)[1:]
COPYLEFT = re.compile(r"\bA?GPL|(?<!Lesser )General Public", re.IGNORECASE)
BESIDES = {"docutils": "Public Domain, BSD License, GNU General Public License (GPL)"}
"""GPL is the licence of an Emacs file that the wheel does not hold."""


def test_every_pinned_version_has_its_hashes_and_torch_alone_has_none() -> None:
    locked = (ROOT / "constraints-hashed.txt").read_text()

    assert read_pins(locked) == {name: version for name, version in PINS.items() if name not in NO_HASH}, "make lock"
    for requirement in re.split(r"^(?=[A-Za-z])", locked, flags=re.MULTILINE)[1:]:
        assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", requirement)


def test_every_pinned_version_has_its_licence_and_none_is_copyleft_of_the_whole() -> None:
    assert {name: version for name, version, _ in ROWS} == PINS, "make lock"
    assert {name: words for name, _, words in ROWS if COPYLEFT.search(words)} == BESIDES


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"license_expression": "MIT", "classifier": ["License :: OSI Approved :: BSD License"]}, "MIT"),
        ({"classifier": ["License :: OSI Approved", "License :: OSI Approved :: BSD License"]}, "BSD License"),
        ({"license": "Apache-2.0", "classifier": ["Topic :: Software"]}, "Apache-2.0"),
    ],
    ids=["expression", "classifier", "field"],
)
def test_a_licence_is_in_the_packages_own_words(told: dict[str, object], words: str) -> None:
    assert licence({"name": "a", **told}) == words


def test_a_package_that_says_nothing_of_its_licence_stops_the_list() -> None:
    with pytest.raises(KeyError, match="a-b"):
        licence({"name": "A_b", "license": "a whole text\nof many lines"})


def test_files_from_elsewhere_than_pypi_are_not_hashed() -> None:
    item = {"metadata": {"name": "a"}, "download_info": {"url": "file:///wheels/a.whl", "archive_info": {}}}

    with pytest.raises(SystemExit, match=r"pip would take file:///wheels/a\.whl: the hashes of PyPI"):
        hashed({"a": "1"}, [[item]])
