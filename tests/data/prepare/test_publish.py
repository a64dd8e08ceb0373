"""Manifest of a histories folder: counts of both passes must agree, and event types must have codes of their own."""

from typing import Any

import pytest

from clv.data.events import type_code
from clv.data.prepare import publish
from clv.data.prepare.publish import BuildRecord


def record(pass_1: int, pass_2: int) -> BuildRecord:
    counts: dict[str, Any] = {"rejected": {}, "notices": {}}
    part = {"row_accounting": {"events": counts | {"read": pass_2, "accepted": pass_2}}, "shared_orders": 2}
    return BuildRecord(1, [], [], {"events": counts | {"read": pass_1, "accepted": pass_1}}, [part])


def test_orders_shared_by_customers_become_a_notice_of_the_total_counts() -> None:
    total = publish._total_accounting(record(5, 5))["events"]
    assert (total.read, total.accepted) == (5, 5)
    assert total.notices == {"order ids that stand for several customers (each gets an order of its own)": 2}


def test_rows_that_are_lost_between_the_passes_raise() -> None:
    with pytest.raises(RuntimeError, match="pass 1 accepted 5 rows of events, pass 2 read 4"):
        publish._total_accounting(record(5, 4))


def test_two_event_types_with_one_code_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    publish._check_type_codes(["purchase", "spin", "view"])
    monkeypatch.setattr(publish, "type_code", lambda names: type_code(names) * 0)
    with pytest.raises(publish.SpecError, match="event types 'spin' and 'view' share the code 0; rename one"):
        publish._check_type_codes(["spin", "view"])
