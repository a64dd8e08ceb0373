"""Load the customers of a histories folder into the online store, one shard in memory at a time.

Reads HISTORIES, the folder that ray_jobs.prepare wrote. Replaces customers in STORE as a whole; events that the server
received since then and that the histories do not hold are kept. Events of an erased customer that are older than the
erasure are left out. Writes run.json into a store that is a folder.

    python -m ray_jobs.load_store --histories out/histories --store out/store
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options of a load."""

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    store: str
    """The online store (the server's CLV_STORE): a folder, created when missing, or redis://HOST:PORT/DB."""
    rows: int = 20_000
    """Customers per transaction (Redis: at most 1,000)."""


def run(options: Options) -> None:
    """Raises ValueError for a folder without shards, a damaged shard or a store of another version."""
    import pyarrow.parquet as pq

    from clv.data.clock import to_datetime
    from clv.serve.store.factory import is_folder, open_store
    from clv.serve.store.protocol import StoreUnavailableError

    begun = datetime.now(UTC)
    shards = sorted((options.histories / "shards").glob("*.parquet"))
    if not shards:
        raise ValueError(f"{options.histories} holds no shards/*.parquet: name a folder that prepare wrote")
    if options.rows < 1:
        raise ValueError(f"--rows {options.rows} must be at least 1")
    store = open_store(options.store, create=True)
    try:
        before, read, put = store.count(), 0, 0
        for shard in shards:
            table = pq.read_table(shard)
            for start in range(0, len(table), options.rows):
                part = table.slice(start, options.rows)
                read, put = read + len(part), put + store.put_histories(part)
            LOG.info(f"{shard.name}: {len(table):,} customers")
        after, through, size = store.count(), store.data_through(), store.size_bytes()
    except StoreUnavailableError as error:
        raise ValueError(f"{options.store}: {error} Load again when it does; nothing is lost.") from error
    finally:
        store.close()
    newest = "no event" if through is None else to_datetime(through).isoformat(timespec="seconds")
    added, erased = after - before, read - put
    replaced, each = put - added, size // max(after, 1)
    erased_too = f" + {erased:,} erased" if erased else ""
    LOG.info(
        f"read {read:,} customers = {added:,} added + {replaced:,} replaced{erased_too}; {after:,} stored, "
        f"{each:,} bytes per customer, data through {newest}"
    )
    if is_folder(options.store):
        accounting = {"read": read, "added": added, "replaced": replaced, "erased": erased, "stored": after}
        record.write(Path(options.store), options, begun, **accounting, bytes_per_customer=each)


def main() -> None:
    execute("load_store", Options, run, __doc__)


if __name__ == "__main__":
    main()
