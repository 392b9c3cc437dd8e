"""No input makes a parser do anything but read it or refuse it by name, within a second and 50 MB."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsers import LONGEST_INPUT, PARSERS, Parser, read, seeds

WORDS = [
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b"-",
    b"=",
    b'"',
    b"\n",
    b"(x",
    b")",
    b"0",
    b"9" * 20,
    b"1e999",
    b"NaN",
    b"null",
]
HUGE = [
    b"[" * LONGEST_INPUT,
    b'{"a":' * (LONGEST_INPUT // 5),
    b"a = " + b"[" * LONGEST_INPUT,
    b"a." * (LONGEST_INPUT // 2) + b"a = 1",
    b"9" * LONGEST_INPUT,
    b'{"step": ' + b"9" * 4000 + b', "time": ' + b"9" * 4000 + b"}\n",
    b"n[" + b"9" * 5000 + b"]",
    b"n[" + b"0" * 60_000 + b"1-999999]",
    b"n" * 60_000 + b"[1-999999]",
    b"n[1-999999]",
    b"n[1-500,1-500][1-500,1-500]",
    b"n[1-9],n[1-9]" * 4000,
    b"8(x1000000)",
    b"8(x" + b"9" * 5000 + b")",
    b"1(x999999),1",
    b"a:" + b"9" * 5000,
    b"a slots=" + b"9" * 5000,
    b"Nodes=n[1-999999] CPU_IDs=0 Mem=0 GRES=gpu:1 " * 20,
    b"\xff\xfe\x00",
    b"",
]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_what_it_is_meant_for_is_read(parser: Parser, tmp_path: Path) -> None:
    for seed in seeds(parser)[:1]:
        if parser.name != "manifest":  # its files are not there
            assert parser.parse(seed, tmp_path)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_what_is_absurdly_large_or_deep_is_read_or_refused(parser: Parser, tmp_path: Path) -> None:
    for data in HUGE:
        read(parser, data, tmp_path, trace=True)
        read(parser, data, tmp_path, trace=False)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_random_input_is_read_or_refused(parser: Parser, tmp_path: Path) -> None:
    def changed(seed: bytes, at: float, length: int, by: bytes) -> bytes:
        place = int(at * len(seed))
        return seed[:place] + by + seed[place + length :]

    piece = st.one_of(st.sampled_from(WORDS), st.binary(max_size=8), st.sampled_from(seeds(parser)))
    mutated = st.builds(changed, st.sampled_from(seeds(parser)), st.floats(0, 1), st.integers(0, 20), piece)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.one_of(mutated, st.lists(piece, max_size=12).map(b"".join)))
    def reads(data: bytes) -> None:
        read(parser, data, tmp_path, trace=False)

    reads()
