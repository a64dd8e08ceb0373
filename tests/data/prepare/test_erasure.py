"""Erased customers: proofs name them by salted hashes, and records of their rejects are removed."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from clv.data.prepare import erasure
from clv.data.prepare.accounting import REJECTS
from clv.data.prepare.erasure import Erased, Erasure
from tests.data.prepare.small_logs import spec_of

SPEC = spec_of("log.csv")


def rejects(*records: dict[str, object]) -> pa.Table:
    rows = [{"table": "events", "stage": "read", "reason": "r", "record": json.dumps(record)} for record in records]
    return pa.Table.from_pylist(rows, schema=REJECTS)


def test_a_proof_keeps_hashes_only_and_matches_rows_before_the_erasure(tmp_path: Path) -> None:
    erased = Erasure.create(["anna", "7"], at=1_000)
    erasure.write_proof(tmp_path, erased, {"erased": erased.to_json()})
    (proof,) = (tmp_path / "erasures").iterdir()
    assert "anna" not in proof.read_text()
    loaded = Erased.load(tmp_path)
    assert len(loaded) == 1
    assert loaded.mask(pa.array(["anna", "ann", "7"])).tolist() == [True, False, True]
    time = np.array([999, 1_000, 999])
    assert loaded.mask(pa.array(["anna", "anna", "otto"]), time).tolist() == [True, False, False]


def test_two_erasures_of_one_customer_share_no_hash() -> None:
    first, second = (Erasure.create(["anna"], at=1) for _ in range(2))
    assert not set(first.customers) & set(second.customers)


def test_records_of_a_customer_and_malformed_lines_lose_their_content_but_stay_counted() -> None:
    table = rejects({"id": "anna", "x": 1}, {"id": "otto"}, {"line": "anna;1;"}, {"id": 7.0})
    redacted = erasure.redact_records(table, SPEC, lambda ids: np.isin(ids, ["anna", "7"]))
    assert len(redacted) == 4
    assert [record is None for record in redacted["record"].to_pylist()] == [True, False, True, True]


def test_every_kind_of_file_is_searched_for_remaining_customers(tmp_path: Path) -> None:
    from clv.data.events import stable_hash
    from clv.data.prepare.partition import write_parquet, write_partitions

    shard = pa.table({"customer_id": ["anna", "otto"]})
    write_parquet(shard, tmp_path / "shards" / "part-00000.parquet")
    part = np.zeros(2, np.int64)
    write_partitions(shard, part, 1, tmp_path / "rows" / "events" / "u0.arrow")
    pairs = pa.table({"order": [1, 2], "customer": stable_hash(["anna", "otto"])})
    write_partitions(pairs, part, 1, tmp_path / "rows" / "orders" / "u0.arrow")
    write_parquet(rejects({"id": "anna"}), tmp_path / "rejects" / "part-read.parquet")
    assert erasure.count_remaining(tmp_path, ["anna"], SPEC) == {"shards": 1, "rows": 2, "rejects": 1}
    assert erasure.count_remaining(tmp_path, ["eva"], SPEC) == {"shards": 0, "rows": 0, "rejects": 0}
