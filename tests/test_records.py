"""What ranks say of their beginning and end, kept as it comes."""

from pathlib import Path

from cluster.records import Records, read_records


def test_the_first_end_of_a_rank_counts(tmp_path: Path) -> None:
    records = Records(tmp_path / "ranks.jsonl", {})

    for state in ("started", "failed", "complete"):
        records.add({"rank": 0, "state": state})
    records.close()

    assert [record["state"] for record in read_records(tmp_path)] == ["started", "failed"]
    assert records.ended == {0}


def test_what_a_full_disk_does_not_take_is_known_all_the_same(tmp_path: Path) -> None:
    records = Records(tmp_path / "gone/ranks.jsonl", {})

    records.add({"rank": 0, "state": "complete"})
    records.flush()

    assert [record["rank"] for record in records.of("complete")] == [0]


def test_half_a_record_after_a_full_disk_hides_none_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "ranks.jsonl").write_text(
        '{"rank": 0, "state": "started"}\n{"rank": 1, "st\n{"rank": 2, "state": "failed"}\n'
    )

    assert [record["rank"] for record in read_records(tmp_path)] == [0, 2]
