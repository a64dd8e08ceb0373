"""A histories folder: which ones are refused, with what remedy, and what the methods read of the others."""

import json
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.data.clock import DAY_US
from clv.data.dataset import VECTORS, PreparedDataset
from clv.data.histories import SCHEMA_VERSION
from clv.data.spec.models import DatasetSpec
from tests.prepared_shop import SPEC, prepared_shop


def test_histories_of_another_version_are_refused_whatever_their_spec_holds(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION - 1}))
    (tmp_path / "spec.yaml").write_text("name: shop\nmeasure: revenue\n")
    with pytest.raises(ValueError, match=f"has schema version {SCHEMA_VERSION - 1}, .*; prepare it again"):
        PreparedDataset.open(tmp_path)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a histories folder .*; write one with ray_jobs\.prepare"):
        PreparedDataset.open(tmp_path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("shop")
    return PreparedDataset.open(
        prepared_shop(folder, 2, 20, "2023-01-01", "2023-07-01", seed=1, timezone="Europe/Berlin")
    )


def test_the_first_shards_are_a_part_of_all_histories(prepared: PreparedDataset) -> None:
    customers = [part["customers"] for part in prepared.manifest["shards"]]
    assert [len(prepared.histories(number)) for number in (1, 2, None)] == [
        customers[0],
        sum(customers),
        sum(customers),
    ]
    assert all(path.is_file() for path in prepared.shards)


def test_the_data_end_at_local_midnight_after_the_last_event(prepared: PreparedDataset) -> None:
    last = max(times[-1] for times in prepared.histories()["time"].to_pylist())
    assert prepared.clock.format(prepared.data_through) == (last.date() + timedelta(days=1)).isoformat()
    assert prepared.origin(None) == prepared.data_through


def test_an_origin_before_the_first_event_is_refused(prepared: PreparedDataset) -> None:
    first = prepared.clock.parse(prepared.manifest["first_time"])
    day = prepared.clock.format(first + DAY_US)
    assert prepared.origin(day) == prepared.clock.parse(day)
    last = prepared.clock.format(prepared.data_through - DAY_US)
    with pytest.raises(
        ValueError, match=f"^origin 2022-01-01 lies before the log, which runs from .* to {last}; choose"
    ):
        prepared.origin("2022-01-01")
    with pytest.raises(ValueError, match="lies before the log"):
        prepared.origin(prepared.manifest["first_time"])


def test_the_shards_of_a_process_hold_about_the_tokens_of_its_limit() -> None:
    spec = DatasetSpec.parse(SPEC.format(folder="shop", timezone="UTC"), "simulated")
    shards = [{"file": f"{i}", "customers": customers} for i, customers in enumerate((100, 200, 50, 50))]
    large = PreparedDataset(Path("shop"), spec, {"num_tokens": 4_000, "shards": shards})
    # 10 tokens a customer: the first shards hold 1000, 3000, 3500 and 4000 tokens.
    limits = {1: 1, 1_000: 1, 2_999: 1, 3_000: 2, 3_499: 2, 3_500: 3, 4_000: 4, 10**9: 4}
    assert {limit: large.shards_within(limit) for limit in limits} == limits
    assert PreparedDataset(Path("shop"), spec, {"num_tokens": 0, "shards": []}).shards_within(10) == 0


def test_item_vectors_are_read_where_there_are_any(prepared: PreparedDataset) -> None:
    items, vectors = prepared.items()
    assert (len(items), vectors) == (0, None)
    table = pa.table({"text_key": [1], "vector": [[0.5]]})
    pq.write_table(table, prepared.folder / VECTORS)
    assert prepared.items()[1] == table
    (prepared.folder / VECTORS).unlink()


def test_a_shard_that_is_damaged_or_missing_is_named_with_the_remedy(tmp_path: Path) -> None:
    prepared = PreparedDataset.open(prepared_shop(tmp_path, 2, 10, "2023-01-01", "2023-07-01", seed=1))
    second = prepared.shards[1]
    second.write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=rf"{second} is damaged \(.*\); prepare the histories again"):
        prepared.histories(1)
    second.unlink()
    with pytest.raises(ValueError, match=f"{second} is missing; restore it, or prepare the histories again"):
        prepared.check_shards()
