"""The erase job: listed customers leave the folder, the others stay."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clv.data.dataset import PreparedDataset
from ray_jobs import erase, prepare
from tests.ray_jobs.verbs import two_day_log


def test_erase_removes_the_listed_customers_and_a_later_prepare_keeps_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = two_day_log(tmp_path)
    prepare.run(replace(options, append=True))
    (tmp_path / "ids.txt").write_text("a\n\nnobody\n")
    erase.run(erase.Options(histories=tmp_path / "out", customers=tmp_path / "ids.txt"))
    logged = capsys.readouterr().out
    assert "erased 1 of 2 listed customers, 1 events" in logged
    assert "events: 4 rows read, 3 accepted, 1 rejected" in logged
    histories = PreparedDataset.open(tmp_path / "out").histories()
    assert histories["customer_id"].to_pylist() == ["b", "c"]
    assert histories["amount"].to_pylist() == [[1.0, 6.0], [7.0]]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["arguments"]["customers"].endswith("ids.txt")
    prepare.run(replace(options, overwrite=True))
    assert PreparedDataset.open(tmp_path / "out").histories()["customer_id"].to_pylist() == ["b", "c"]


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    two_day_log(tmp_path)
    (tmp_path / "ids.txt").write_text("\n")
    with pytest.raises(ValueError, match="the list of customers to erase is empty; give one id per line"):
        erase.run(erase.Options(histories=tmp_path / "out", customers=tmp_path / "ids.txt"))
