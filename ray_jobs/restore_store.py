"""Restore an online store, SQLite or Redis, from a backup.

Reads FOLDER, which ray_jobs.backup_store wrote, and writes its customers into STORE, with every event that was
acknowledged before the backup; erased customers are left out. Afterwards load newer histories, and let callers repeat
what they sent since the backup: an event that is stored already counts once.

    python -m ray_jobs.restore_store --backup out/backup --store redis://localhost:6379/1
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.backup_store import ERASURES, MANIFEST
from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options of a restore."""

    backup: Path
    """Folder that backup_store wrote."""
    store: str
    """The online store: a folder, created when missing, or redis://HOST:PORT/DB."""
    overwrite: bool = False
    """Restore also into a store that holds customers; those of the backup lose the events received since."""


def run(options: Options) -> None:
    """Raises ValueError for a damaged or foreign backup, and for a store that holds customers."""
    import pyarrow.parquet as pq

    from clv.data.hashing import file_sha256
    from clv.serve.store.factory import open_store
    from clv.serve.store.protocol import StoreUnavailableError
    from clv.serve.store.records import FORMAT

    try:
        manifest = json.loads((options.backup / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(f"{options.backup} is not a backup: {error}") from error
    if manifest["format"] != FORMAT:
        raise ValueError(f"{options.backup} was written by another version: restore it with that one")
    for name, known in manifest["sha256"].items():
        path = options.backup / name
        if not path.is_file() or file_sha256(path) != known:
            raise ValueError(f"{path} is missing or damaged: nothing was restored")
    store = open_store(options.store, create=True)
    try:
        if (count := store.count()) and not options.overwrite:
            raise ValueError(f"{options.store} holds {count:,} customers: restore into an empty store, or --overwrite")
        store.restore_erasures(pq.read_table(options.backup / ERASURES))
        parts = sorted(name for name in manifest["sha256"] if name != ERASURES)
        restored = sum(store.restore(pq.read_table(options.backup / name)) for name in parts)
        after = store.count()
    except StoreUnavailableError as error:
        raise ValueError(f"{options.store}: {error} Restore again when it does.") from error
    finally:
        store.close()
    left = manifest["customers"] - restored
    accounting = f"{manifest['customers']:,} customers = {restored:,} restored + {left:,} erased"
    LOG.info(f"backup of {manifest['at']}: {accounting}; {after:,} stored")


def main() -> None:
    execute("restore_store", Options, run, __doc__)


if __name__ == "__main__":
    main()
