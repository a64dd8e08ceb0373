"""Records of the store: blobs, new and repeated events, and bulk loads."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from clv.data.histories import HISTORIES, Histories, build
from clv.serve.store.records import BulkLoad, ConflictError, EventAppend, StoredEvent, decode, digest, encode
from tests.serve.store.test_events import CLOCK, shop
from tests.serve.store.test_protocol import histories, same


def test_encoded_histories_are_decoded_bit_for_bit_and_a_truncated_blob_is_an_error() -> None:
    table = histories(50)
    tokens, items, blobs = encode(Histories.from_table(table))
    names, blobs = table["customer_id"].to_pylist(), [bytes(blob) for blob in blobs]
    decoded = decode(names, tokens.tolist(), items.tolist(), blobs)
    assert same(decoded.select(HISTORIES.names), table)
    with pytest.raises(ValueError, match=r"the store is damaged: .* bytes of histories instead of"):
        decode(names, tokens.tolist(), items.tolist(), [*blobs[:-1], blobs[-1][8:]])


def test_only_new_events_are_appended_and_a_changed_event_is_a_conflict(rng: np.random.Generator) -> None:
    events = shop(rng).slice(0, 4)
    batch = EventAppend.from_events(pa.concat_tables([events, events.slice(3, 1)]), CLOCK)
    stored = {(batch.names[row], batch.keys[row]): batch.lines[row].tobytes() for row in range(3)}
    contained = (batch.names[1], batch.keys[1])
    stored[contained] = digest(stored[contained])
    assert batch.new_rows(stored) == [3]
    stored[contained] = digest(b"another event")
    with pytest.raises(ConflictError, match=r"events \[1\] have the ids of other events"):
        batch.new_rows(stored)


def test_a_bulk_load_marks_contained_events_and_keeps_the_time_of_pending_ones(rng: np.random.Generator) -> None:
    events = shop(rng, customers=1)
    batch = EventAppend.from_events(events, CLOCK)
    held = [
        StoredEvent(*event, line.tobytes()) for *event, line in zip(batch.names, batch.keys, batch.lines, strict=True)
    ]
    half = len(events) // 2
    plan = BulkLoad.plan(build(events.slice(0, half), CLOCK), held, {})
    assert {event.event for event in plan.contained} >= set(batch.keys[:half])
    assert not any(event.pending for event in plan.contained)
    assert plan.records[0].last_time == int(batch.lines["time"].max())
