"""Slurm's grammars of node lists and per-node counts."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RequestError
from cluster.nodelist import compress_counts, expand_counts, expand_nodelist


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("login", ["login"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("a[1-2,05-07],b", ["a1", "a2", "a05", "a06", "a07", "b"]),
        ("gpu[001-003]-ib", ["gpu001-ib", "gpu002-ib", "gpu003-ib"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("z[2,1],a", ["z2", "z1", "a"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("node-1.example.org", ["node-1.example.org"]),
    ],
)
def test_a_node_list_expands_in_its_own_order(nodelist: str, hosts: list[str]) -> None:
    assert expand_nodelist(nodelist) == hosts


@pytest.mark.parametrize(
    "nodelist",
    [
        "",
        ",",
        "a,",
        ",a",
        "n[",
        "n]",
        "n[]",
        "n[1-]",
        "n[3-1]",
        "n[a-b]",
        "n[1-2",
        "a b",
        "n[1,,2]",
        "n[[1]]",
        "n[١]",
        "n" * 300 + "[1]",
    ],
)
def test_what_is_no_node_list_is_refused_with_an_example(nodelist: str) -> None:
    with pytest.raises(RequestError, match=r"cannot read the node list .*: wanted a form like"):
        expand_nodelist(nodelist)


@pytest.mark.parametrize("nodelist", ["n[1-9999999]", "n[1-1000][1-1000][1-1000]", "n[0-99999999999999999999]"])
def test_a_list_of_absurd_length_is_refused_at_once(nodelist: str) -> None:
    with pytest.raises(RequestError):
        expand_nodelist(nodelist)


@given(
    st.text("abcxyz", min_size=1, max_size=4),
    st.integers(0, 500),
    st.integers(0, 300),
    st.integers(1, 5),
    st.sampled_from(["", "-ib", ".cluster"]),
)
def test_a_range_gives_every_number_once_and_keeps_its_padding(
    prefix: str, low: int, more: int, width: int, suffix: str
) -> None:
    hosts = expand_nodelist(f"{prefix}[{low:0{width}d}-{low + more:0{width}d}]{suffix}")

    assert hosts == [f"{prefix}{number:0{width}d}{suffix}" for number in range(low, low + more + 1)]


@given(st.text("an[]-,0123456789()x ", max_size=30))
def test_any_text_either_expands_or_is_refused_with_the_one_named_error(text: str) -> None:
    for expand in (expand_nodelist, expand_counts):
        with contextlib.suppress(RequestError):
            assert len(expand(text)) > 0


@pytest.mark.parametrize(("counts", "numbers"), [("4", [4]), ("8(x2),4", [8, 8, 4]), ("2,1(x3),2", [2, 1, 1, 1, 2])])
def test_counts_expand_one_number_a_node(counts: str, numbers: list[int]) -> None:
    assert expand_counts(counts) == numbers


@pytest.mark.parametrize("counts", ["", "x2", "8(2)", "8(x0)", "8(x2", "8,,4", "-1", "8(x99999999)"])
def test_what_is_no_count_is_refused(counts: str) -> None:
    with pytest.raises(RequestError, match="cannot read the per-node counts"):
        expand_counts(counts)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=40))
def test_compressing_counts_is_undone_by_expanding_them(numbers: list[int]) -> None:
    assert expand_counts(compress_counts(numbers)) == numbers
