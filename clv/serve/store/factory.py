"""Opens the store of an address."""

from __future__ import annotations

from pathlib import Path

from clv.serve.store.protocol import Store, is_redis


def open_store(address: str | Path, *, create: bool = False) -> Store:
    """The store at a folder or sqlite:PATH (SQLite), or at redis://, rediss:// or unix:// (Redis).

    Without `create` it must be there: ValueError otherwise. A Redis that does not answer now is asked again later.
    """
    text = str(address)
    if is_redis(text):
        from clv.serve.store.redis import RedisStore

        return RedisStore(text, create=create)
    if "://" in text and not text.startswith("sqlite://"):
        raise ValueError(f"{text} is no store: give a folder, or an address that begins with redis:// or rediss://")
    from clv.serve.store.sqlite import SqliteStore

    path = text.removeprefix("sqlite://") if text.startswith("sqlite://") else text
    return SqliteStore(Path(path), create=create)


def is_folder(address: str | Path) -> bool:
    """Whether the address is one of SQLite on this machine."""
    return "://" not in str(address)
