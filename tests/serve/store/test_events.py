"""Events that are appended to a store: once each, in whatever order, equal to a preparation of all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clv.data.clock import DAY_US, Clock
from clv.data.events import EVENTS, US
from clv.data.histories import Histories, build
from clv.serve.store.factory import open_store
from clv.serve.store.protocol import Store, StoreUnavailableError
from clv.serve.store.records import ConflictError
from clv.serve.store.sqlite import SqliteStore

CLOCK = Clock("Europe/London")
BEGIN = CLOCK.parse("2011-01-03")


def shop(rng: np.random.Generator, orders: int = 300, customers: int = 30) -> pa.Table:
    """Orders of 1 to 4 lines within minutes, every fifth sent back some days later; views; half have order ids."""
    number = np.repeat(np.arange(orders), rng.integers(1, 5, orders))
    when = BEGIN + rng.integers(0, 200 * DAY_US, orders)
    kind = np.array(["purchase", "purchase", "purchase", "return", "view"])[number % 5]
    time = when[number] + np.where(number % 2, rng.integers(0, 60_000_000, len(number)), 0)
    rows = len(number)
    return pa.table(
        {
            "event_id": [f"e{i}" for i in range(rows)],
            "customer_id": [f"c{i:03d}" for i in number % customers],
            "event_time": pa.array(time).cast(US),
            "known_at": pa.array(time + 10**6 * (number % 3)).cast(US),
            "event_type": kind,
            "order_id": pa.array([f"o{i}" for i in number], mask=number % 4 == 3),
            "item_id": [f"i{i}" for i in rng.integers(30, size=rows)],
            "quantity": rng.integers(1, 9, rows).astype(float),
            "amount": pa.array(
                np.where(kind == "return", -1, 1) * rng.normal(20, 5, rows).round(2), mask=number % 17 == 0
            ),
            "amount_filled": np.zeros(rows, bool),
            "text": pa.nulls(rows, pa.string()),
            "channel": ["web"] * rows,
        },
        schema=EVENTS,
    )


def ids(table: pa.Table) -> list[str]:
    return sorted(set(table["customer_id"].to_pylist()))


def last(events: pa.Table) -> int:
    return int(pc.max(events["event_time"].cast(pa.int64())).as_py())


def assert_equal(found: pa.Table, expected: pa.Table) -> None:
    """Every column; the items of an order as a set, sums to rounding."""
    left, right = Histories.from_table(found), Histories.from_table(expected)
    assert left.customer_id.equals(right.customer_id)
    for name in ("offsets", "time", "known_at", "day", "type", "order", "lines", "filled", "channel", "text"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    np.testing.assert_allclose(left.amount, right.amount, rtol=1e-12)
    np.testing.assert_allclose(left.quantity, right.quantity, rtol=1e-6)
    pairs = zip(found["items"].to_pylist(), expected["items"].to_pylist(), strict=True)
    assert all(list(map(sorted, one)) == list(map(sorted, other)) for one, other in pairs)


@pytest.mark.parametrize("order", ["as it happened", "any order"])
@pytest.mark.parametrize("loaded", [0.0, 0.6])
def test_a_replay_through_the_store_equals_a_full_preparation(
    store: Store, rng: np.random.Generator, loaded: float, order: str
) -> None:
    events = shop(rng).sort_by("event_time")
    first = int(len(events) * loaded)
    if first:
        store.put_histories(build(events.slice(0, first), CLOCK))
    rest = events.slice(first)
    if order == "any order":
        rest = rest.take(pa.array(rng.permutation(len(rest))))
    stored = 0
    for start in range(0, len(rest), 37):
        stored += store.append(rest.slice(start, 37), CLOCK).stored
    expected = build(events, CLOCK)
    assert stored == len(rest)
    assert store.count() == len(expected)
    newest = store.data_through()
    assert newest is not None
    assert pc.max(expected["last_time"].cast(pa.int64())).as_py() <= newest <= last(events)
    assert_equal(store.get(ids(events)), expected)


def test_an_event_that_is_sent_twice_is_stored_once(store: Store, rng: np.random.Generator) -> None:
    events = shop(rng)
    first = store.append(events.slice(0, 100), CLOCK)
    again = store.append(events.slice(50, 100), CLOCK)
    assert (first.stored, first.repeated) == (100, 0)
    assert (again.stored, again.repeated) == (50, 50)
    assert_equal(store.get(ids(events)), build(events.slice(0, 150), CLOCK))


def test_an_id_of_another_event_is_a_conflict_and_nothing_of_the_batch_is_stored(
    store: Store, rng: np.random.Generator
) -> None:
    events = shop(rng)
    store.append(events.slice(0, 10), CLOCK)
    amounts = events["amount"].to_pylist()
    amounts[4] = 999.0
    changed = events.set_column(8, EVENTS.field("amount"), pa.array(amounts)).slice(3, 20)
    with pytest.raises(ConflictError, match="other events") as refused:
        store.append(changed, CLOCK)
    assert refused.value.rows == [1]
    assert_equal(store.get(ids(events)), build(events.slice(0, 10), CLOCK))


def test_the_same_id_of_two_customers_is_two_events(store: Store, rng: np.random.Generator) -> None:
    events = shop(rng)
    twice = pa.concat_tables([events.slice(0, 1), events.slice(0, 1).set_column(1, EVENTS.field(1), pa.array(["x"]))])
    assert store.append(twice, CLOCK).stored == 2
    assert store.count() == 2


def test_a_bulk_load_keeps_what_it_does_not_hold_and_forgets_no_id(store: Store, rng: np.random.Generator) -> None:
    events = shop(rng).sort_by("event_time")
    store.append(events, CLOCK)
    # The warehouse knows the first 400 lines, whole orders of them.
    known = set(events["order_id"].to_pylist()[:400]) - {None}
    inside = pc.or_kleene(pc.is_in(events["order_id"], pa.array(sorted(known))), pc.is_null(events["order_id"]))
    store.put_histories(build(events.filter(inside), CLOCK))
    assert_equal(store.get(ids(events)), build(events, CLOCK))
    again = store.append(events, CLOCK)
    assert (again.stored, again.repeated) == (0, len(events))
    store.put_histories(build(events, CLOCK))
    assert_equal(store.get(ids(events)), build(events, CLOCK))


def test_an_older_load_does_not_set_back_the_newest_event(store: Store, rng: np.random.Generator) -> None:
    events = shop(rng).sort_by("event_time")
    store.append(events.slice(300), CLOCK)
    store.append(events.slice(0, 300), CLOCK)
    assert store.data_through() == last(events)
    store.put_histories(build(events.slice(0, 300), CLOCK))
    assert store.data_through() == last(events)


def test_attributes_of_the_load_stay_when_events_come(store: Store, rng: np.random.Generator) -> None:
    events = shop(rng)
    towns = pa.table({"customer_id": ids(events), "attr_town": ["Leeds", None, "York"] * 10})
    store.put_histories(build(events.slice(0, 300), CLOCK, towns))
    store.append(events.slice(300), CLOCK)
    found = store.get(ids(events))
    rows = zip(found["customer_id"].to_pylist(), found["attr_town"].to_pylist(), strict=True)
    loaded = set(ids(events.slice(0, 300)))
    given = dict(zip(towns["customer_id"].to_pylist(), towns["attr_town"].to_pylist(), strict=True))
    assert dict(rows) == {name: town if name in loaded else None for name, town in given.items()}


def test_the_erased_are_gone_until_new_events_come_and_old_loads_do_not_bring_them_back(
    store: Store, rng: np.random.Generator
) -> None:
    events = shop(rng)
    store.put_histories(build(events.slice(0, 300), CLOCK))
    store.append(events.slice(300), CLOCK)
    assert store.delete(["c003", "c004", "nobody"]) == 2
    assert store.delete(["c003"]) == 0
    assert store.get(["c003"]).num_rows == 0
    assert store.put_histories(build(events, CLOCK)) == 28
    assert store.get(["c003", "c004", "c005"])["customer_id"].to_pylist() == ["c005"]
    mine = events.filter(pc.equal(events["customer_id"], "c003")).slice(0, 1)
    assert store.append(mine, CLOCK).stored == 1
    assert_equal(store.get(["c003"]), build(mine, CLOCK))
    store.put_histories(build(events, CLOCK))
    assert_equal(store.get(["c003"]), build(mine, CLOCK))
    assert store.delete(["c003"]) == 1, "also a customer of whom no history was loaded"
    assert store.get(["c003"]).num_rows == 0


def test_an_erased_customer_leaves_no_byte_in_the_files(tmp_path: Path, rng: np.random.Generator) -> None:
    store = SqliteStore(tmp_path, create=True)
    table = build(shop(rng), CLOCK)
    names = ["secret-id" if name == "c007" else name for name in table["customer_id"].to_pylist()]
    store.put_histories(table.set_column(0, "customer_id", pa.array(names)))
    one = shop(rng).slice(0, 1)
    store.append(one.set_column(1, EVENTS.field(1), pa.array(["secret-id"])), CLOCK)

    def holds() -> bool:
        return any(b"secret-id" in file.read_bytes() for file in tmp_path.iterdir())

    assert holds()
    store.delete(["secret-id"])
    assert not holds()
    store.close()


def test_writers_of_one_customer_do_not_lose_each_others_events(address: str, rng: np.random.Generator) -> None:
    events = shop(rng, customers=2).slice(0, 240)
    stores = [open_store(address, create=True) for _ in range(4)]
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for start in range(number * 60, number * 60 + 60, 5):
                stores[number].append(events.slice(start, 5), CLOCK)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    assert_equal(stores[0].get(ids(events)), build(events, CLOCK))
    for store in stores:
        store.close()


def test_appending_does_not_get_slower_with_the_history(store: Store, rng: np.random.Generator) -> None:
    def history(name: str, orders: int) -> pa.Table:
        events = shop(rng, orders, 1)
        return build(events.set_column(1, EVENTS.field(1), pa.array([name] * len(events))), CLOCK)

    store.put_histories(pa.concat_tables([history("short", 10), history("long", 20_000)]))

    def seconds(name: str) -> float:
        events = shop(rng, 100, 1)
        events = events.set_column(0, "event_id", pa.array([f"{rng.integers(2**60)}" for _ in range(len(events))]))
        events = events.set_column(1, EVENTS.field(1), pa.array([name] * len(events)))
        begun = time.perf_counter()
        for i in range(60):
            store.append(events.slice(i, 1), CLOCK)
        return time.perf_counter() - begun

    seconds("warm")
    short, long = (min(seconds(name) for _ in range(3)) for name in ("short", "long"))
    # 2,000 times the history. Reading the long one once takes several times an append.
    assert long < 3 * short, (long, short)


def test_a_dump_of_one_store_fills_another(store: Store, rng: np.random.Generator, tmp_path: Path) -> None:
    events = shop(rng)
    towns = pa.table({"customer_id": ids(events), "attr_town": ["Leeds", None, "York"] * 10})
    store.put_histories(build(events.slice(0, 300), CLOCK, towns))
    store.append(events.slice(300), CLOCK)
    store.delete(["c009"])
    other = open_store(tmp_path / "other", create=True)
    other.restore_erasures(store.erasures())
    assert sum(other.restore(part) for part in store.dump()) == store.count()
    names = ids(events)
    assert repr(other.get(names).to_pylist()) == repr(store.get(names).to_pylist())
    assert other.data_through() == store.data_through()
    assert other.append(events.slice(300, 50), CLOCK).stored == sum(
        name == "c009" for name in events.slice(300, 50)["customer_id"].to_pylist()
    )
    assert other.put_histories(build(events.filter(pc.equal(events["customer_id"], "c009")), CLOCK)) == 0
    assert other.pseudonym("c001") == store.pseudonym("c001")
    other.close()


WRITER = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("t", sys.argv[1]); t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
store = t.open_store(sys.argv[2], create=True)
events = t.shop(np.random.default_rng(3), 4000)
for start in range(0, len(events), 7):
    store.append(events.slice(start, 7), t.CLOCK)
    print(start + 7, flush=True)
"""


@pytest.mark.faults
def test_nothing_acknowledged_is_lost_when_the_writing_process_is_killed(address: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, __file__, address], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    confirmed = [int(writer.stdout.readline()) for _ in range(40)][-1]
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    store = open_store(address)
    events = shop(np.random.default_rng(3), 4000)
    again = store.append(events.slice(0, confirmed), CLOCK)
    assert (again.stored, again.repeated) == (0, confirmed)
    store.append(events.slice(confirmed, 50), CLOCK)
    assert_equal(store.get(ids(events)), build(events.slice(0, confirmed + 50), CLOCK))
    store.close()


@pytest.mark.faults
def test_nothing_acknowledged_is_lost_when_redis_is_killed(
    redis_server: object, tmp_path: Path, rng: np.random.Generator
) -> None:
    server = type(redis_server)(tmp_path, redis_server.port + 1)  # type: ignore[attr-defined, call-arg]
    server.start()
    store = open_store(server.url, create=True)
    events = shop(rng, 2000)
    killer = threading.Timer(0.4, server.kill)
    killer.start()
    confirmed = [0]

    def write() -> None:
        for start in range(0, len(events), 3):
            store.append(events.slice(start, 3), CLOCK)
            confirmed[0] = start + 3

    with pytest.raises(StoreUnavailableError, match="does not answer"):
        write()
    killer.join()
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        store.get(["c001"])
    server.start()
    assert confirmed[0] > 30
    again = store.append(events.slice(0, confirmed[0]), CLOCK)
    assert (again.stored, again.repeated) == (0, confirmed[0]), "the same store object works on"
    count = len(events.slice(0, confirmed[0] + 3))
    store.append(events.slice(0, count), CLOCK)
    assert_equal(store.get(ids(events)), build(events.slice(0, count), CLOCK))
    store.close()
    server.kill()
