"""An empty store of either kind: every test that takes one runs on SQLite and on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clv.serve.store.factory import open_store
from clv.serve.store.protocol import Store


@pytest.fixture(params=["sqlite", "redis"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "sqlite" else request.getfixturevalue("redis_url")


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    store = open_store(address, create=True)
    yield store
    store.close()
