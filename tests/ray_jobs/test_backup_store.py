"""The backup job's command line; tests/serve/store/test_backup.py has what a backup holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from clv.serve.store.factory import open_store
from ray_jobs import backup_store


def test_a_folder_that_exists_is_not_written_into(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists: name a new folder for each backup"):
        backup_store.run(backup_store.Options(store=str(tmp_path / "store"), out=tmp_path))


def test_a_backup_holds_a_hash_of_every_file_and_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    open_store(tmp_path / "store", create=True).close()
    out = tmp_path / "backup"
    backup_store.run(backup_store.Options(store=str(tmp_path / "store"), out=out))
    assert {path.name for path in out.iterdir()} == {backup_store.MANIFEST, backup_store.ERASURES}
    digest = hashlib.sha256((out / backup_store.ERASURES).read_bytes()).hexdigest()
    assert digest in (out / backup_store.MANIFEST).read_text()
    assert out.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
