"""A backup brings every customer back, into SQLite or Redis, and the erased stay erased."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clv.data.clock import Clock
from clv.data.histories import Histories, build
from clv.serve.store.factory import open_store
from clv.serve.store.protocol import Store
from clv.simulate.small import simulate
from ray_jobs import backup_store, restore_store

CLOCK = Clock("UTC")


@pytest.fixture(scope="module")
def events() -> pa.Table:
    return simulate(200, "2024-01-01", "2024-06-01", seed=1).events


@pytest.fixture
def store(tmp_path: Path, events: pa.Table) -> Store:
    """Histories of four months, events of a fifth; one customer erased."""
    store = open_store(tmp_path / "store", create=True)
    early = pc.less(events["event_time"].cast(pa.int64()), CLOCK.parse("2024-05-01"))
    store.put_histories(build(events.filter(early), CLOCK))
    for start in range(0, len(events), 500):
        store.append(events.filter(pc.invert(early)).slice(start, 500), CLOCK)
    assert store.delete([names(store, events)[3]]) == 1
    return store


def names(store: Store, events: pa.Table) -> list[str]:
    return store.get(sorted(set(events["customer_id"].to_pylist())))["customer_id"].to_pylist()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_every_customer_comes_back_as_it_was(
    store: Store, events: pa.Table, tmp_path: Path, kind: str, redis_url: str
) -> None:
    place = str(tmp_path / "other") if kind == "sqlite" else redis_url
    backup_store.run(backup_store.Options(store=str(tmp_path / "store"), out=tmp_path / "backup"))
    restore_store.run(restore_store.Options(backup=tmp_path / "backup", store=place))
    other = open_store(place)
    kept = names(store, events)
    assert names(other, events) == kept
    left, right = Histories.from_table(other.get(kept)), Histories.from_table(store.get(kept))
    for name in ("offsets", "time", "known_at", "day", "type", "amount", "quantity", "items", "item_offsets", "order"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    assert (other.count(), other.data_through()) == (store.count(), store.data_through())
    assert other.pseudonym("x") == store.pseudonym("x")
    assert other.put_histories(build(events, CLOCK)) == len(kept), "the erased stay erased"
    late = events.slice(len(events) - 10)
    late = late.filter(pc.is_in(late["customer_id"], pa.array(kept)))
    assert other.append(late, CLOCK).stored == 0, "ids are remembered too"
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    other.close()


def test_a_damaged_or_foreign_backup_restores_nothing(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    backup_store.run(backup_store.Options(store=str(tmp_path / "store"), out=folder))
    with pytest.raises(ValueError, match="exists: name a new folder"):
        backup_store.run(backup_store.Options(store=str(tmp_path / "store"), out=folder))
    target = restore_store.Options(backup=folder, store=str(tmp_path / "other"))
    part = folder / "customers-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"customers-00001\.parquet is missing or damaged: nothing"):
        restore_store.run(target)
    part.unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        restore_store.run(target)
    assert not (tmp_path / "other").exists()
    part.write_bytes(whole)
    manifest = json.loads((folder / "backup.json").read_text())
    (folder / "backup.json").write_text(json.dumps(manifest | {"format": "[1]"}))
    with pytest.raises(ValueError, match="another version"):
        restore_store.run(target)
    (folder / "backup.json").unlink()
    with pytest.raises(ValueError, match="is not a backup"):
        restore_store.run(target)


def test_a_store_with_customers_is_not_overwritten_unasked(store: Store, tmp_path: Path) -> None:
    folder, place = tmp_path / "backup", str(tmp_path / "store")
    backup_store.run(backup_store.Options(store=place, out=folder))
    with pytest.raises(ValueError, match=r"holds [0-9]+ customers: restore into an empty store"):
        restore_store.run(restore_store.Options(backup=folder, store=place))
    restore_store.run(restore_store.Options(backup=folder, store=place, overwrite=True))
