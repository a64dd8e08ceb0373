"""Opens the online store of an address: a folder (SQLite) or a Redis server."""

from __future__ import annotations

from pathlib import Path

from clv.serve.store.protocol import Store


def open_store(address: str | Path, *, create: bool = False, serving: bool = False) -> Store:
    """Returns the store of a folder or sqlite://PATH (SQLite), or of redis://, rediss:// or unix:// (Redis).

    Raises ValueError for another address, and for a store that does not exist unless `create`. A Redis that does not
    answer is opened nevertheless: the store connects again at each call. `serving` shortens the time for which a call
    waits: a service must not wait for its store as long as a job may.
    """
    text = str(address)
    if is_redis(text):
        from clv.serve.store.redis import RedisStore

        return RedisStore(text, create=create, serving=serving)
    if "://" in text and not text.startswith("sqlite://"):
        raise ValueError(f"{text} is no store: give a folder, or an address that begins with redis:// or rediss://")
    from clv.serve.store.sqlite import SqliteStore

    return SqliteStore(Path(text.removeprefix("sqlite://")), create=create, serving=serving)


def is_folder(address: str | Path) -> bool:
    """Returns whether the address is a folder of SQLite on this machine."""
    return "://" not in str(address)


def is_redis(address: str | Path) -> bool:
    """Returns whether the address is a Redis server."""
    return str(address).startswith(("redis:", "rediss:", "unix:"))
