"""Both passes of prepare, in one process and on Ray: same bytes, balanced row accounting, nothing half written."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.cluster.preparing import choose_partitions, prepare
from clv.cluster.work_units import run_here, run_on_ray
from clv.data import cutoff, histories
from clv.data.hashing import file_sha256
from clv.data.histories import Histories
from clv.data.prepare import partition
from clv.data.prepare.check import TooManyRejectsError, check
from clv.data.prepare.intake import to_event_schema
from clv.data.sources import reading
from clv.data.spec.models import DatasetSpec, SpecError
from tests.cluster.dirty_shop import SPEC, read_shards, write_shop


def prepared(spec: DatasetSpec, out: Path, **more: Any) -> dict[str, Any]:
    return prepare(spec, "shop.yaml", out, **({"run": run_here} | more))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units, batches and flushes from few rows."""
    monkeypatch.setattr(reading, "UNIT_ROWS", 400)
    monkeypatch.setattr(reading, "BATCH_ROWS", 128)
    monkeypatch.setattr(partition, "FLUSH_ROWS", 300)


@pytest.mark.usefixtures("small_pieces")
def test_prepare_equals_one_kernel_over_the_whole_cleaned_log(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = write_shop(tmp_path, rng)
    manifest = prepared(spec, tmp_path / "out", partitions=5)

    rows = pa.concat_tables([pq.read_table(path) for path in sorted(tmp_path.glob("log-*.parquet"))]).to_pandas()
    kept = rows[(rows["c"].notna()) & (rows["x"] > 0)].drop_duplicates()
    assert manifest["row_accounting"]["events"]["accepted"] == len(kept)
    assert manifest["row_accounting"]["events"]["read"] == len(rows)
    assert manifest["row_accounting"]["events"]["rejected"] == {
        "customer_id is missing (anonymous)": int(rows["c"].isna().sum()),
        "amount <= 0": int((rows["c"].notna() & (rows["x"] <= 0)).sum()),
        "exact duplicate of another row": len(rows[(rows["c"].notna()) & (rows["x"] > 0)]) - len(kept),
    }
    shards = read_shards(tmp_path / "out")
    whole = to_event_schema(
        pa.table(
            {
                "customer_id": kept["c"].tolist(),
                "event_time": pa.array(kept["t"].to_numpy() * 1_000_000).cast(pa.timestamp("us", tz="UTC")),
                "event_type": ["purchase"] * len(kept),
                "order_id": kept["o"].tolist(),
                "item_id": kept["i"].tolist(),
                "quantity": kept["q"].astype(float).to_numpy(),
                "amount": kept["x"].to_numpy(),
                "amount_filled": np.zeros(len(kept), bool),
            }
        )
    )
    expected = histories.build(whole, spec.clock)
    got = shards.sort_by("customer_id").select(expected.column_names)
    assert got.equals(expected.cast(got.schema))


@pytest.mark.usefixtures("small_pieces")
def test_the_result_does_not_depend_on_how_the_log_is_cut_and_shards_repeat_to_the_byte(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_shop(tmp_path, rng)
    first = prepared(spec, tmp_path / "a", partitions=4)
    monkeypatch.setattr(reading, "UNIT_ROWS", 10_000)
    monkeypatch.setattr(partition, "FLUSH_ROWS", 10_000)
    second = prepared(spec, tmp_path / "b", partitions=4)
    assert first["shards"] == second["shards"]
    assert first["items_sha256"] == second["items_sha256"]
    more = prepared(spec, tmp_path / "c", partitions=1)
    assert len(more["shards"]) == 1
    a, c = read_shards(tmp_path / "a").sort_by("customer_id"), read_shards(tmp_path / "c")
    assert a.equals(c)


def test_a_customer_stands_in_one_shard_only(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = write_shop(tmp_path, rng)
    manifest = prepared(spec, tmp_path / "out", partitions=7)
    table = read_shards(tmp_path / "out")
    assert len(set(table["customer_id"].to_pylist())) == len(table) == manifest["num_customers"]
    assert len(manifest["shards"]) > 1


def test_the_folder_holds_what_the_manifest_says(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = write_shop(tmp_path, rng)
    out = tmp_path / "out"
    manifest = prepared(spec, out, partitions=3)
    assert sorted(path.name for path in out.iterdir()) == [
        "items", "manifest.json", "parts.json", "quality.html", "rejects", "rows", "shards", "spec.yaml", "stats.json",
    ]  # fmt: skip
    assert json.loads((out / "manifest.json").read_text()) == manifest
    for shard in manifest["shards"]:
        assert file_sha256(out / shard["file"]) == shard["sha256"]
    assert DatasetSpec.load(out / "spec.yaml") == spec
    rejects = pa.concat_tables([pq.read_table(out / name) for name in manifest["rejects"]])
    counted = {t: sum(b["rejected"].values()) for t, b in manifest["row_accounting"].items()}
    assert len(rejects) == sum(counted.values())
    assert manifest["event_types"] == {"purchase": 0}
    assert {entry["path"] for entry in manifest["sources"]} == {str(p) for p in tmp_path.glob("*.[cp]*")} - {str(out)}
    page = (out / "quality.html").read_text()
    assert "exact duplicate of another row" in page
    assert "http" not in page
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert [str(path) for path in out.rglob(".*")] == []


def test_attributes_join_and_missing_ones_are_filled_and_flagged(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = write_shop(tmp_path, rng)
    manifest = prepared(spec, tmp_path / "out", partitions=3)
    rows = {row["customer_id"]: row for row in read_shards(tmp_path / "out").to_pylist()}
    assert (rows["c1"]["attr_city"], rows["c1"]["attr_age"], rows["c1"]["attr_city_filled"]) == ("Ulm", 30.0, 0.0)
    assert (rows["c2"]["attr_city"], rows["c2"]["attr_age"], rows["c2"]["attr_city_filled"]) == ("unknown", 41.0, 1.0)
    assert (rows["c3"]["attr_city"], rows["c3"]["attr_age"]) == ("unknown", None)
    assert manifest["row_accounting"]["customers"]["rejected"] == {
        "customer_id is missing": 1,
        "customer_id stands in the table before": 1,
    }
    assert manifest["row_accounting"]["customers"]["notices"] == {"customers of the customer table without an event": 1}


def test_attributes_with_a_date_travel_with_it_and_show_from_then_on(tmp_path: Path, rng: np.random.Generator) -> None:
    write_shop(tmp_path, rng)
    (tmp_path / "people.csv").write_text(
        "id,city,moved,size\nc1,Ulm,2021-03-01,1\nc2,Bonn,,2\nc3,Kiel,soon,3\nc4,Jena,2199-01-01,4\nc5,,,5\n"
    )
    text = SPEC.format(folder=tmp_path)
    text = text[: text.index("customers:")] + (
        f"customers:\n  path: {tmp_path}/people.csv\n  columns: {{customer_id: id}}\n  attributes:\n"
        "    city: {column: city, known_at: moved, fill: unknown}\n"
        "    size: {column: size, constant: true, kind: numeric}\n"
    ) + text[text.index("cleaning:") :]  # fmt: skip
    spec = DatasetSpec.parse(text, "shop.yaml")
    manifest = prepared(spec, tmp_path / "out", partitions=2)
    accounting = manifest["row_accounting"]["customers"]
    assert accounting["rejected"] == {"known_at of city is unreadable or outside 1970 to 2099": 2}
    assert accounting["notices"]["values of city without a known_at, never used"] == 1
    h = Histories.from_table(read_shards(tmp_path / "out"))

    def at(day: str) -> dict[str, tuple[str, float, float]]:
        found = cutoff.cut(h, [spec.clock.parse(day)], [30], spec.clock)
        known = found.attributes()
        ids = h.customer_id.take(pa.array(found.customer)).to_pylist()
        return dict(zip(ids, zip(known["city"], known["city_filled"], known["size"], strict=True), strict=True))

    assert at("2021-03-01")["c1"] == ("unknown", 1.0, 1.0)
    assert at("2021-03-02")["c1"] == ("Ulm", 0.0, 1.0)
    assert at("2021-03-02")["c2"][:2] == at("2021-03-02")["c5"][:2] == ("unknown", 1.0)
    with pytest.raises(SpecError, match=r"customers\[0\]\.attributes\.city\.known_at: .* has no column 'movd'"):
        prepared(DatasetSpec.parse(text.replace("known_at: moved", "known_at: movd"), "s"), tmp_path / "none")


def test_items_come_from_the_events_with_their_most_frequent_text(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = write_shop(tmp_path, rng)
    prepared(spec, tmp_path / "out", partitions=3)
    items = pq.read_table(tmp_path / "out" / "items" / "items.parquet")
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(tmp_path.glob("log-*.parquet"))]).to_pandas()
    rows = rows[(rows["c"].notna()) & (rows["x"] > 0)]
    counts = rows.assign(d=rows["d"].str.strip()).groupby(["i", "d"]).size()
    assert sorted(items["item_id"].to_pylist()) == sorted(rows["i"].unique())
    for item, text in zip(items["item_id"].to_pylist(), items["text"].to_pylist(), strict=True):
        assert counts[item, text] == counts[item].max()
    known = set(items["item_key"].to_pylist())
    assert set(Histories.from_table(read_shards(tmp_path / "out")).items.tolist()) <= known


def test_a_customer_of_a_hundred_thousand_events_and_a_log_of_one_customer(tmp_path: Path) -> None:
    count = 100_000
    pq.write_table(
        pa.table({"c": ["whale"] * count, "t": np.arange(count) + 1_600_000_000, "x": np.ones(count)}),
        tmp_path / "log.parquet",
    )
    spec = DatasetSpec.parse(
        f"name: w\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: {tmp_path}/log.parquet\n"
        "  columns: {customer_id: c, event_time: t, amount: x}\n  time_format: unix_s\n",
        "w.yaml",
    )
    manifest = prepared(spec, tmp_path / "out", partitions=4)
    assert (manifest["num_customers"], manifest["num_tokens"]) == (1, count)
    assert [shard["customers"] for shard in manifest["shards"]] == [1]
    assert "is it a reseller" in (tmp_path / "out" / "quality.html").read_text()


def test_an_order_id_shared_by_customers_is_a_counted_notice(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "c,t,o,x\na,2020-01-01,1,5\nb,2020-01-01,1,6\nb,2020-01-02,2,7\nb,2020-01-02,2,1\n"
    )
    spec = DatasetSpec.parse(
        f"name: w\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: {tmp_path}/log.csv\n"
        "  columns: {customer_id: c, event_time: t, order_id: o, amount: x}\n",
        "w.yaml",
    )
    manifest = prepared(spec, tmp_path / "out", partitions=3)
    notices = manifest["row_accounting"]["events"]["notices"]
    assert notices == {"order ids that stand for several customers (each gets an order of its own)": 1}
    assert manifest["num_tokens"] == 3


def test_missing_amounts_take_the_list_price_of_the_item_table(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("c,t,i,q,x\na,2020-01-01,mug,3,\na,2020-01-02,mug,1,9\nb,2020-01-02,jar,1,\n")
    (tmp_path / "items.csv").write_text("id,p,n\nmug,2.5,A mug\njar,,A jar\nmug,9,Again\n")
    spec = DatasetSpec.parse(
        f"name: w\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: {tmp_path}/log.csv\n"
        "  columns: {customer_id: c, event_time: t, item_id: i, quantity: q, amount: x}\n"
        f"items: {{path: {tmp_path}/items.csv, columns: {{item_id: id, price: p, text: n}}}}\n"
        "cleaning: {missing_amount: item_price}\nmax_rejected_share: 0.5\n",
        "w.yaml",
    )
    assert check(spec, "w.yaml")["events[0]"].rejected == {"amount is missing": 1}
    manifest = prepared(spec, tmp_path / "out", partitions=2)
    h = Histories.from_table(read_shards(tmp_path / "out"))
    assert h.amount.tolist() == [7.5, 9.0]
    assert h.filled.tolist() == [1, 0]
    assert manifest["row_accounting"]["events"]["rejected"] == {"amount is missing": 1}
    assert manifest["row_accounting"]["items"]["rejected"] == {"item_id stands in the table before": 1}


def test_too_many_rejects_stop_the_run_with_reasons_and_an_example_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("c,t,x\na,2020-01-01,5\nb,soon,6\n")
    spec = DatasetSpec.parse(
        f"name: w\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: {tmp_path}/log.csv\n"
        "  columns: {customer_id: c, event_time: t, amount: x}\n",
        "w.yaml",
    )
    with pytest.raises(TooManyRejectsError, match=r"(?s)1 of 2 events \(50\.0%\).*unreadable.*for example.*soon"):
        prepared(spec, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv"]


def test_only_a_histories_folder_is_overwritten_and_only_when_asked(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = write_shop(tmp_path, rng, num_rows=300)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(SpecError, match="exists and is not empty; choose another folder or add --overwrite"):
        prepared(spec, out)
    with pytest.raises(SpecError, match="is not a histories folder, so --overwrite leaves it alone"):
        prepared(spec, out, overwrite=True)
    os.remove(out / "thesis.txt")
    prepared(spec, out)
    before = (out / "manifest.json").stat().st_ino
    prepared(spec, out, overwrite=True)
    assert (out / "manifest.json").stat().st_ino != before


def test_partitions_grow_with_the_log_alone_and_become_larger_when_there_are_very_many() -> None:
    assert [choose_partitions(rows) for rows in (0, 60_000, 500_001, 100_000_000)] == [1, 1, 2, 200]
    # Ten billion: the root of twenty times larger ones.
    assert choose_partitions(10_000_000_000) == 4473


@pytest.mark.ray
def test_on_ray_the_shards_are_the_same_bytes(tmp_path: Path, rng: np.random.Generator, ray_cluster: None) -> None:
    spec = write_shop(tmp_path, rng)
    here = prepared(spec, tmp_path / "here", partitions=3)
    there = prepared(spec, tmp_path / "there", partitions=3, run=partial(run_on_ray, workers=2))
    assert here["shards"] == there["shards"]
    assert here["row_accounting"] == there["row_accounting"]
