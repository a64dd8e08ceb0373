"""SQLite: missing, foreign and locked files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from clv.serve.store.protocol import StoreUnavailableError
from clv.serve.store.sqlite import FILE, SqliteStore
from tests.serve.store.test_events import CLOCK, shop


def test_a_missing_store_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ray_jobs\.load_store"):
        SqliteStore(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_foreign_file_and_a_foreign_database_are_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text("not a database" * 1000)
    with pytest.raises(ValueError, match="cannot be used as a store"):
        SqliteStore(tmp_path)
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(ValueError, match="not a store of this version"):
        SqliteStore(tmp_path)


def test_a_locked_file_is_a_store_that_is_busy(tmp_path: Path, rng: np.random.Generator) -> None:
    store = SqliteStore(tmp_path, create=True)
    store._connection().execute("PRAGMA busy_timeout = 50")
    other = SqliteStore(tmp_path)
    other._connection().execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="is busy"):
        store.append(shop(rng).slice(0, 1), CLOCK)
    other._connection().execute("ROLLBACK")
    assert store.append(shop(rng).slice(0, 1), CLOCK).stored == 1
    for one in (store, other):
        one.close()
