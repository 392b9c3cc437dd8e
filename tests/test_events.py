"""events.jsonl: what happened, one line each."""

import json
from pathlib import Path

from cluster.events import NOT_DELIVERED, last_event, record_event


def test_events_follow_one_another_one_json_object_a_line(tmp_path: Path) -> None:
    record_event(tmp_path, "attempt started", attempt=1)
    record_event(tmp_path, "host excluded", host="n2")

    first, second = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (first["event"], first["attempt"]) == ("attempt started", 1)
    assert (second["event"], second["host"]) == ("host excluded", "n2")
    assert first["time"] <= second["time"]


def test_what_happened_last_is_no_notice_of_it(tmp_path: Path) -> None:
    assert last_event(tmp_path) is None
    record_event(tmp_path, "requeue", attempt=1)
    record_event(tmp_path, NOT_DELIVERED, of="requeue")

    assert last_event(tmp_path) == "requeue"


def test_an_event_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    record_event(tmp_path / "gone", "attempt started")


def test_a_disk_that_fills_up_meanwhile_does_not_end_the_run_either(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")

    record_event(tmp_path, "attempt started")
