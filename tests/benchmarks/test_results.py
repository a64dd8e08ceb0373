"""The file of figures: one entry per name, targets of one form."""

import json
from pathlib import Path

import pytest

from benchmarks.results import FILE, TARGET, record


def test_an_entry_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    record("house.b", 1, "<= 2", command="x", file=file)
    record("house.a", 3.5, "1 to 4", unit="s", command="y", note="z", file=file)
    record("house.b", 2, "<= 2", command="x", file=file)
    entries = json.loads(file.read_text())
    assert [(e["name"], e["value"], e["target"]) for e in entries] == [
        ("house.a", 3.5, "1 to 4"),
        ("house.b", 2, "<= 2"),
    ]


@pytest.mark.parametrize(("name", "target"), [("speed.a", "<= 1"), ("house", "<= 1"), ("house.a", "< 1")])
def test_a_name_or_target_of_another_form_is_refused(name: str, target: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must"):
        record(name, 1, target, command="x", file=tmp_path / "results.json")


def test_the_committed_entries_have_the_form() -> None:
    entries = json.loads(FILE.read_text())
    assert len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        assert set(entry) == {"name", "value", "target", "unit", "command", "commit", "note"}
        assert TARGET.fullmatch(entry["target"]), entry["name"]
        assert isinstance(entry["value"], bool) is (entry["target"] == ""), entry["name"]
