"""The restore job's refusals; tests/serve/store/test_backup.py has what a restored store holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clv.serve.store.factory import open_store
from ray_jobs import backup_store, restore_store


def test_a_folder_that_is_no_backup_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a backup"):
        restore_store.run(restore_store.Options(backup=tmp_path, store=str(tmp_path / "store")))
    assert not (tmp_path / "store").exists()


def test_a_backup_of_another_version_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "store", create=True).close()
    backup_store.run(backup_store.Options(store=str(tmp_path / "store"), out=tmp_path / "backup"))
    manifest = json.loads((tmp_path / "backup" / backup_store.MANIFEST).read_text())
    (tmp_path / "backup" / backup_store.MANIFEST).write_text(json.dumps(manifest | {"format": -1}))
    with pytest.raises(ValueError, match="was written by another version: restore it with that one"):
        restore_store.run(restore_store.Options(backup=tmp_path / "backup", store=str(tmp_path / "other")))
