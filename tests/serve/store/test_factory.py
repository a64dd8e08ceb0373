"""The address of a store selects SQLite or Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from clv.serve.store.factory import is_folder, is_redis, open_store
from clv.serve.store.redis import RedisStore
from clv.serve.store.sqlite import SqliteStore


def test_an_address_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="is no store"):
        open_store("http://localhost/x")


def test_the_address_selects_the_kind_of_store(tmp_path: Path, redis_url: str) -> None:
    for address, kind in (
        (tmp_path / "a", SqliteStore),
        (f"sqlite://{tmp_path}/b", SqliteStore),
        (redis_url, RedisStore),
    ):
        store = open_store(address, create=True)
        assert type(store) is kind
        store.close()
    assert (tmp_path / "a/store.sqlite").exists()
    assert (tmp_path / "b/store.sqlite").exists()


@pytest.mark.parametrize(
    ("address", "folder", "redis"),
    [
        ("out/store", True, False),
        ("redis://h:1/0", False, True),
        ("rediss://h", False, True),
        ("unix:///s", False, True),
    ],
)
def test_folders_and_servers_are_distinguished(address: str, folder: bool, redis: bool) -> None:
    assert (is_folder(address), is_redis(address)) == (folder, redis)
