"""Every store keeps this contract; the last tests are about SQLite's own promises."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import redis

from clv.data.clock import Clock
from clv.data.events import EVENTS, US
from clv.data.histories import HISTORIES, RAW_TEXT, build
from clv.serve.store.factory import open_store
from clv.serve.store.protocol import Store
from clv.serve.store.sqlite import FILE, SqliteStore

BEGIN = 1_300_000_000_000_000


def histories(num_customers: int, seed: int = 0, prefix: str = "c") -> pa.Table:
    """Random histories with orders of several lines, prices missing here and there, messages and channels."""
    rng = np.random.default_rng(seed)
    rows = num_customers * 7
    customer = np.append(np.arange(num_customers), rng.integers(num_customers, size=rows - num_customers))
    time = BEGIN + rng.integers(0, 10**13, rows)
    events = pa.table(
        {
            "event_id": pa.nulls(rows, pa.string()),
            "customer_id": [f"{prefix}{i:05d}" for i in customer],
            "event_time": pa.array(time, pa.int64()).cast(US),
            "known_at": pa.array(time + rng.integers(0, 10**9, rows), pa.int64()).cast(US),
            "event_type": rng.choice(["purchase", "purchase", "return", "view", "spin the wheel"], rows),
            "order_id": pa.array([f"o{i}" for i in rng.integers(rows // 2, size=rows)], mask=rng.random(rows) < 0.3),
            "item_id": pa.array([f"i{i}" for i in rng.integers(50, size=rows)], mask=rng.random(rows) < 0.2),
            "quantity": rng.integers(1, 9, rows).astype(float),
            "amount": pa.array(rng.normal(20, 5, rows).round(2), mask=rng.random(rows) < 0.1),
            "amount_filled": rng.random(rows) < 0.1,
            "text": pa.array(["hello"] * rows, mask=rng.random(rows) < 0.9),
            "channel": pa.array(["web"] * rows, mask=rng.random(rows) < 0.5),
        },
        schema=EVENTS,
    )
    return build(events, Clock("Europe/London")).select(HISTORIES.names)


def same(left: pa.Table, right: pa.Table) -> bool:
    """Bit for bit equal, NaN equal to NaN."""
    assert left.schema.equals(right.schema), (left.schema, right.schema)
    return repr(left.to_pylist()) == repr(right.to_pylist())


def test_what_was_put_comes_back_bit_for_bit(store: Store) -> None:
    table = histories(200)
    assert store.put_histories(table) == 200
    assert store.count() == 200
    assert same(store.get(table["customer_id"].to_pylist()), table)


def test_any_subset_comes_sorted_and_without_the_unknown(store: Store) -> None:
    table = histories(50)
    store.put_histories(table)
    found = store.get(["c00031", "nobody", "c00007", "c00031"])
    assert found["customer_id"].to_pylist() == ["c00007", "c00031"]
    assert same(found, table.take(pa.array([7, 31])))


def test_nobody_found_is_an_empty_histories_table(store: Store) -> None:
    assert store.get(["nobody"]).num_rows == 0
    assert store.get([]).num_rows == 0
    assert store.get(["nobody"]).schema.names == HISTORIES.names
    assert store.data_through() is None


def test_putting_again_replaces_the_whole_customer(store: Store) -> None:
    store.put_histories(histories(20))
    again = histories(20, seed=1)
    store.put_histories(again)
    assert store.count() == 20
    assert same(store.get(again["customer_id"].to_pylist()), again)


def test_deleted_customers_are_gone_and_counted_once(store: Store) -> None:
    store.put_histories(histories(20))
    assert store.delete(["c00003", "c00004", "nobody"]) == 2
    assert store.delete(["c00003"]) == 0
    assert store.count() == 18
    assert store.get(["c00003", "c00005"])["customer_id"].to_pylist() == ["c00005"]


def test_data_through_is_the_newest_event_stored(store: Store) -> None:
    table = histories(20)
    store.put_histories(table)
    newest = pc.max(table["last_time"].cast(pa.int64())).as_py()
    assert store.data_through() == newest
    owner = table.filter(pc.equal(table["last_time"].cast(pa.int64()), newest))["customer_id"].to_pylist()
    store.delete(owner)
    assert store.data_through() < newest


def test_attributes_come_back_and_are_null_where_never_given(store: Store) -> None:
    table = histories(3)
    store.put_histories(table.slice(0, 1))
    rich = table.slice(1).append_column("attr_age", pa.array([41.0, None]))
    rich = rich.append_column('attr_the "town"', pa.array(["Köln", None]))
    store.put_histories(rich)
    found = store.get(table["customer_id"].to_pylist())
    assert found["attr_age"].to_pylist() == [None, 41.0, None]
    assert found['attr_the "town"'].to_pylist() == [None, "Köln", None]


def test_of_a_text_the_hash_is_kept(store: Store) -> None:
    table = histories(5)
    said = pa.array([["where is it?"] * len(times) for times in table["time"]], pa.list_(pa.string()))
    store.put_histories(table.append_column(RAW_TEXT, said))
    assert same(store.get(table["customer_id"].to_pylist()), table)


@pytest.mark.parametrize("name", ["'; DROP TABLE customers; --", "ünïcode 客户", '"quoted"', "%_*?", "a" * 128])
def test_any_customer_id_is_just_text(store: Store, name: str) -> None:
    table = histories(1)
    table = table.set_column(0, "customer_id", pa.array([name]))
    store.put_histories(table)
    assert same(store.get([name]), table)


def test_a_customer_without_events_is_refused(store: Store) -> None:
    table = histories(2)
    empty = table.slice(0, 1).to_pylist()[0]
    empty = {key: [] if isinstance(value, list) else value for key, value in empty.items()}
    with pytest.raises(ValueError, match="without events"):
        store.put_histories(pa.Table.from_pylist([empty], table.schema))
    assert store.count() == 0


def test_readers_see_whole_puts_while_a_writer_writes(store: Store) -> None:
    versions = [histories(40, seed=seed) for seed in range(2)]
    store.put_histories(versions[0])
    ids = versions[0]["customer_id"].to_pylist()
    expected = [repr(version["time"].to_pylist()) for version in versions]
    done = threading.Event()
    seen: list[str] = []
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                seen.append(repr(store.get(ids)["time"].to_pylist()))
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(30):
        store.put_histories(versions[(turn + 1) % 2])
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert len(seen) > 10
    assert set(seen) <= set(expected)


def test_a_put_that_returned_survives_kill_minus_nine(tmp_path: Path) -> None:
    path = tmp_path / "store"
    program = (
        "import importlib.util, sys, pathlib\n"
        "spec = importlib.util.spec_from_file_location('t', sys.argv[1]); t = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(t)\n"
        "store = t.SqliteStore(pathlib.Path(sys.argv[2]), create=True)\n"
        "for i in range(10_000):\n"
        "    store.put_histories(t.histories(25, seed=i, prefix=f'p{i}-'))\n"
        "    print(i, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, __file__, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    confirmed = [int(writer.stdout.readline()) for _ in range(12)][-1]
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    store = SqliteStore(path)
    assert store.count() % 25 == 0, "a put is all or nothing"
    for i in range(confirmed + 1):
        table = histories(25, seed=i, prefix=f"p{i}-")
        assert same(store.get(table["customer_id"].to_pylist()), table)
    store.close()


def test_a_store_of_an_older_format_is_refused_with_the_remedy(address: str) -> None:
    open_store(address, create=True).close()
    if address.startswith("redis:"):
        client = redis.Redis.from_url(address)
        client.hset("clv:meta", "format", "[2]")
        client.close()
    else:
        with sqlite3.connect(Path(address) / FILE) as connection:
            connection.execute("UPDATE meta SET value = '[2]' WHERE key = 'format'")
        connection.close()
    for create in (False, True):
        with pytest.raises(ValueError, match=r"not a store of this version: load it again with .* ray_jobs.load_store"):
            open_store(address, create=create)
