"""Back up the online store while it serves.

Reads STORE and writes FOLDER: every customer as of one moment, with history and events, the erasures and the store's
key, so that erased customers stay erased after a restore. Keep the folder as safe as the store: it holds customer ids.

    python -m ray_jobs.backup_store --store out/store --out out/backup
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)

MANIFEST = "backup.json"
ERASURES = "erasures.parquet"


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options of a backup."""

    store: str
    """The online store: a folder, or redis://HOST:PORT/DB."""
    out: Path
    """Folder to write; it must not exist."""


def run(options: Options) -> None:
    """Raises ValueError for a store that is missing or down, or a folder that exists."""
    import pyarrow.parquet as pq

    from clv.data.hashing import file_sha256
    from clv.data.workdir import temporary_folder, write_json
    from clv.serve.store.factory import open_store
    from clv.serve.store.protocol import StoreUnavailableError
    from clv.serve.store.records import FORMAT

    out = options.out.absolute()
    if out.exists():
        raise ValueError(f"--out {options.out} exists: name a new folder for each backup")
    store = open_store(options.store)
    try:
        with temporary_folder(out) as folder:
            customers = events = number = 0
            for number, part in enumerate(store.dump(), 1):
                pq.write_table(part, folder / f"customers-{number:05d}.parquet")
                customers += len(part)
                events += sum(map(len, part["lines"].to_pylist()))
            pq.write_table(store.erasures(), folder / ERASURES)
            accounting = {"customers": customers, "events": events, "format": FORMAT}
            files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
            manifest = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **accounting, "sha256": files}
            write_json(folder / MANIFEST, manifest)
            os.chmod(folder, 0o700)
    except StoreUnavailableError as error:
        raise ValueError(f"{options.store}: {error} Back it up again when it does.") from error
    finally:
        store.close()
    LOG.info(f"{customers:,} customers with {events:,} events beside their histories are in {options.out}")


def main() -> None:
    execute("backup_store", Options, run, __doc__)


if __name__ == "__main__":
    main()
