"""A histories folder as it is opened: which ones are refused, and what the user should do about it."""

import json
from pathlib import Path

import pytest

from clv.data.dataset import PreparedDataset
from clv.data.histories import SCHEMA_VERSION


def test_histories_of_another_version_are_refused_whatever_their_spec_holds(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION - 1}))
    (tmp_path / "spec.yaml").write_text("name: shop\nmeasure: revenue\n")
    with pytest.raises(ValueError, match=f"has schema version {SCHEMA_VERSION - 1}, .*; prepare it again"):
        PreparedDataset.open(tmp_path)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a histories folder .*; write one with ray_jobs\.prepare"):
        PreparedDataset.open(tmp_path)
