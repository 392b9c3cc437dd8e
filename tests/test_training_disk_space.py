"""Whether the disk has room is known before the training."""

import errno
from pathlib import Path

import pytest

from training.disk_space import FILES, Room, check_room, room_at, size
from training.errors import InputError, StorageError

HERE = Path("outputs/one/checkpoints")


def check(
    bytes: int, inodes: int | None = None, there: int = 0, evaluated: bool = False, resuming: bool = False
) -> str | None:
    return check_room(Room(bytes, inodes), 1_000_000, 2, there, evaluated, HERE, resuming)


def test_no_room_for_one_checkpoint_is_refused():
    with pytest.raises(InputError, match=r"checkpoints has 999.0 kB left and one checkpoint takes 1.0 MB: free space"):
        check(999_000)


def test_no_inodes_for_one_checkpoint_are_refused():
    with pytest.raises(InputError, match=rf"checkpoints has 3 inodes left and one checkpoint takes {FILES}: remove"):
        check(10**9, inodes=3)


@pytest.mark.parametrize(("bytes", "inodes"), [(999_000, None), (10**9, 3)])
def test_no_room_to_go_on_is_a_fault_of_the_disk_and_not_of_the_request(bytes: int, inodes: int | None):
    with pytest.raises(
        StorageError, match=r"left and one checkpoint takes .* there, then run the same command again"
    ) as caught:
        check(bytes, inodes, resuming=True)
    assert caught.value.errno == errno.ENOSPC


def test_room_for_one_but_not_for_all_is_a_warning():
    warning = check(2_000_000)
    assert warning is not None
    assert warning.startswith("warning: outputs/one/checkpoints has 2.0 MB left, and 3 more checkpoints of 1.0 MB")
    assert warning.endswith("or lower --keep-checkpoints 2")
    assert check(10**9, inodes=2 * FILES) is not None


def test_room_for_all_is_no_word():
    assert check(3_000_000) is None
    assert check(3_000_000, inodes=3 * FILES) is None


def test_the_best_one_needs_room_besides_and_those_that_are_there_need_none():
    assert check(3_000_000, evaluated=True) is not None
    assert check(4_000_000, evaluated=True) is None
    assert check(1_000_000, there=2) is None


def test_this_disk_says_what_it_has(tmp_path: Path):
    assert room_at(tmp_path).bytes > 0


def test_sizes_are_read_easily():
    assert [size(count) for count in (12, 1500, 1_493_000_000, 2e15)] == ["12 bytes", "1.5 kB", "1.5 GB", "2000.0 TB"]
