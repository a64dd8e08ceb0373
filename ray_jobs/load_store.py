"""Load the online store: histories in, a store that the server reads out.

`python -m ray_jobs.load_store --histories HISTORIES --store STORE`. Customers that are stored already are replaced
whole; a server may read the store meanwhile. One process, one shard in memory at a time.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import tyro

from ray_jobs import record
from ray_jobs.command import say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Puts the customers of a histories folder into the online store."""

    histories: Path
    """Folder that prepare wrote."""
    store: Path
    """Folder of the online store (the server's CLV_STORE); made when missing."""
    rows: int = 20_000
    """Customers per transaction."""


def run(options: Options) -> None:
    """Raises ValueError for a folder without shards, a damaged shard or a store of another version."""
    import pyarrow.parquet as pq

    from clv.serve.store import SqliteStore

    begun = datetime.now(UTC)
    shards = sorted((options.histories / "shards").glob("*.parquet"))
    if not shards:
        raise ValueError(f"{options.histories} holds no shards/*.parquet: name a folder that prepare wrote")
    if options.rows < 1:
        raise ValueError(f"--rows {options.rows} must be at least 1")
    store = SqliteStore(options.store, create=True)
    try:
        before, read = store.count(), 0
        for shard in shards:
            table = pq.read_table(shard)
            for start in range(0, len(table), options.rows):
                read += store.put_histories(table.slice(start, options.rows))
            say(f"{shard.name}: {len(table):,} customers")
        after, through = store.count(), store.data_through()
    finally:
        store.close()
    newest = "no event" if through is None else datetime.fromtimestamp(through / 1e6, UTC).isoformat(timespec="seconds")
    added, replaced = after - before, read - (after - before)
    say(f"read {read:,} customers = {added:,} added + {replaced:,} replaced; {after:,} stored, data through {newest}")
    record.write(options.store, options, begun, read=read, added=added, replaced=replaced, stored=after)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"load_store: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
