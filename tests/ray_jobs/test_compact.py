"""The compact job: fewer row files, the same histories."""

from dataclasses import replace
from pathlib import Path

import pytest

from clv.data.dataset import PreparedDataset
from ray_jobs import compact, prepare
from tests.ray_jobs.verbs import two_day_log


def test_compact_merges_row_files_and_keeps_the_histories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.run(replace(two_day_log(tmp_path), append=True))
    before = PreparedDataset.open(tmp_path / "out").histories()
    compact.run(compact.Options(histories=tmp_path / "out"))
    assert "merged 2 row files into 1" in capsys.readouterr().out
    assert PreparedDataset.open(tmp_path / "out").histories().equals(before)
    assert len(list((tmp_path / "out" / "rows" / "events").iterdir())) == 1


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    prepare.run(replace(two_day_log(tmp_path), overwrite=True, keep_rows=False))
    with pytest.raises(ValueError, match="was prepared without its rows; prepare it again without --no-keep-rows"):
        compact.run(compact.Options(histories=tmp_path / "out"))
