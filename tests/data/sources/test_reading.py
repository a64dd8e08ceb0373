"""Sources beyond a plain file: S3, PostgreSQL, folders as Hive writes them, compression, and what is not read."""

import gzip
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from clv.cluster import preparing, work_units
from clv.data.prepare import check
from clv.data.sources import paths, reading
from clv.data.spec.models import DatasetSpec, SpecError
from tests.data.servers import S3, postgresql, s3_server

SPEC = """
name: shop
timezone: UTC
currency: EUR
events:
  {place}
  columns: {{customer_id: c, event_time: t, order_id: o, amount: x}}
  {more}
"""


def spec_of(place: str, more: str = "") -> DatasetSpec:
    return DatasetSpec.parse(SPEC.format(place=place, more=more), "shop.yaml")


def log(rows: int = 4000) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    order = np.sort(rng.integers(0, rows // 3, rows))
    time = pd.Timestamp("2024-01-01") + pd.to_timedelta(order * 3607, "s")
    return pd.DataFrame(
        {"c": [f"c{n % 90}" for n in order], "t": time, "o": order.astype(str),
         "x": np.round(rng.gamma(2, 7, rows), 2), "unused": "x" * 50}
    )  # fmt: skip


def shards(spec: DatasetSpec, out: Path, **more: Any) -> list[str]:
    """sha256 of the shards that a prepare makes of the source."""
    found = preparing.prepare(spec, "s", out, run=work_units.run_here, partitions=2, **more)
    return [shard["sha256"] for shard in found["shards"]]


@pytest.fixture
def expected(tmp_path: Path) -> list[str]:
    """Shards of the log as one plain Parquet file."""
    log().to_parquet(tmp_path / "plain.parquet")
    return shards(spec_of(f"path: {tmp_path}/plain.parquet"), tmp_path / "expected")


def write(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.name.split(".")[1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=500)
        return
    text = (
        frame.to_csv(index=False) if kind == "csv" else frame.to_json(orient="records", lines=True, date_format="iso")
    )
    packed = {".gz": gzip.compress, ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True)}
    path.write_bytes(packed.get(path.suffix, bytes)(text.encode()))


@pytest.mark.parametrize("name", ["csv", "csv.gz", "csv.zst", "jsonl", "jsonl.gz", "jsonl.zst"])
def test_text_in_every_compression_gives_the_same_histories(tmp_path: Path, expected: list[str], name: str) -> None:
    frame = log()
    write(frame[:1500], tmp_path / "logs" / f"a.{name}")
    write(frame[1500:], tmp_path / "logs" / f"b.{name}")
    assert shards(spec_of(f"path: {tmp_path}/logs/*.{name}"), tmp_path / "out") == expected


def hive(folder: Path, suffix: str = "parquet") -> None:
    """Folders day=..., without that column in the files, and the notes that such tools leave."""
    for day, rows in log().groupby(log()["t"].dt.strftime("%Y-%m-%d")):
        write(rows, folder / f"day={day}" / f"part-0.{suffix}")
    (folder / "_SUCCESS").write_text("")
    (folder / "day=2024-01-01" / ".part-0.crc").write_text("x")


@pytest.mark.parametrize("suffix", ["parquet", "csv.gz"])
def test_a_partitioned_folder_is_read_whole_and_its_names_are_columns(
    tmp_path: Path, expected: list[str], suffix: str
) -> None:
    hive(tmp_path / "logs", suffix)
    spec = spec_of(f"path: {tmp_path}/logs", f"format: {suffix.split('.')[0]}")
    assert shards(spec, tmp_path / "out") == expected
    dated = spec_of(f"path: {tmp_path}/logs", f"format: {suffix.split('.')[0]}")
    columns = dated.events[0].columns.model_copy(update={"channel": "day"})
    dated = dated.model_copy(update={"events": [dated.events[0].model_copy(update={"columns": columns})]})
    (first, *_) = reading.plan_units(dated, "s")
    (block,) = reading.read_unit(dated.events[0], first, "s", "k")
    assert set(block.rows["day"].to_pylist()) == {"2024-01-01"}
    assert len(set(shards(dated, tmp_path / "dated")) & set(expected)) == 0


def test_folders_outside_of_where_are_never_opened(tmp_path: Path) -> None:
    hive(tmp_path / "logs")
    (tmp_path / "logs" / "day=2024-01-09" / "part-0.parquet").write_bytes(b"no Parquet")
    place = f"path: {tmp_path}/logs"
    with pytest.raises(SpecError, match=r"day=2024-01-09/part-0\.parquet is not a readable Parquet file"):
        check.check_sources(spec_of(place), "s")
    spec = spec_of(place, "where: {day: {min: 2024-01-03, below: 2024-01-06}}")
    days = [Path(unit.path).parent.name for unit in check.check_sources(spec, "s")]
    assert days == ["day=2024-01-03", "day=2024-01-04", "day=2024-01-05"]
    spec = spec_of(place, "where: {day: [2024-01-02, 2024-02-01]}")
    assert len(reading.plan_units(spec, "s")) == 2
    with pytest.raises(SpecError, match=r"where leaves nothing of the \d+ files"):
        reading.plan_units(spec_of(place, "where: {day: 1999-01-01}"), "s")
    with pytest.raises(SpecError, match=r"events\[0\]\.where: .*part-0\.parquet has no column 'dy'; it has day, c, t"):
        check.check_sources(spec_of(place, "where: {dy: 1, day: 2024-01-01}"), "s")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl.gz"])
def test_rows_outside_of_where_do_not_come(tmp_path: Path, suffix: str) -> None:
    frame = log()
    write(frame, tmp_path / f"log.{suffix}")
    inside = frame[(frame["t"] >= "2024-01-10") & (frame["t"] < "2024-01-20") & frame["c"].isin(["c1", "c5", "c7"])]
    inside.to_parquet(tmp_path / "inside.parquet")
    rule = "where: {t: {min: 2024-01-10, below: 2024-01-20}, c: [c1, c5, c7]}"
    got = shards(spec_of(f"path: {tmp_path}/log.{suffix}", rule), tmp_path / "out")
    assert got == shards(spec_of(f"path: {tmp_path}/inside.parquet"), tmp_path / "expected")


def test_row_groups_that_hold_nothing_of_interest_are_not_in_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = log()
    write(frame, tmp_path / "log.parquet")  # in order of time, 8 groups
    everything = reading.plan_units(spec_of(f"path: {tmp_path}/log.parquet"), "s")
    assert [(unit.start, unit.stop) for unit in everything] == [(0, 8)]
    middle = frame["t"][1200].isoformat(), frame["t"][2100].isoformat()
    rule = f"where: {{t: {{min: '{middle[0]}', below: '{middle[1]}'}}}}"
    spec = spec_of(f"path: {tmp_path}/log.parquet", rule)
    (unit,) = reading.plan_units(spec, "s")
    assert (unit.start, unit.stop, unit.first_row, unit.rows) == (2, 5, 1000, 1500)
    read = sum(len(block.rows) for block in reading.read_unit(spec.events[0], unit, "s", "k"))
    assert read == int(((frame["t"] >= middle[0]) & (frame["t"] < middle[1])).sum())
    with pytest.raises(SpecError, match=r"k\.where: .*soon"):
        list(reading.read_unit(spec_of(f"path: {tmp_path}/log.parquet", "where: {x: soon}").events[0], unit, "s", "k"))


def test_columns_that_no_key_names_are_not_read_unless_copies_are_looked_for(tmp_path: Path) -> None:
    write(log(), tmp_path / "log.parquet")
    spec = spec_of(f"path: {tmp_path}/log.parquet", "event_type: purchase")
    wanted = intake_needed(spec)
    assert wanted == {"c", "t", "o", "x"}
    (unit,) = reading.plan_units(spec, "s")
    (block,) = reading.read_unit(spec.events[0], unit, "s", "k", wanted)
    assert block.rows.column_names == ["c", "t", "o", "x"]
    rules = spec.cleaning.model_copy(update={"exact_duplicates": "drop"})
    assert intake_needed(spec.model_copy(update={"cleaning": rules})) is None


def intake_needed(spec: DatasetSpec) -> set[str] | None:
    from clv.data.prepare.mapping import columns_to_read

    return columns_to_read(spec.events[0], spec)


@pytest.fixture(scope="module")
def bucket() -> Iterator[fs.FileSystem]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as endpoint:
        for name, value in (S3 | {"AWS_ENDPOINT_URL": endpoint}).items():
            patch.setenv(name, value)
        filesystem, _ = fs.FileSystem.from_uri("s3://shop?allow_bucket_creation=true")
        filesystem.create_dir("shop")
        yield filesystem


def upload(bucket: fs.FileSystem, folder: Path, to: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with bucket.open_output_stream(f"{to}/{path.relative_to(folder)}", compression=None) as file:
                file.write(path.read_bytes())


@pytest.mark.parametrize("suffix", ["parquet", "csv", "csv.gz", "jsonl.zst"])
def test_a_bucket_gives_the_same_histories(
    tmp_path: Path, expected: list[str], bucket: fs.FileSystem, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = log()
    write(frame[:1500], tmp_path / "up" / f"a b.{suffix}")  # a name that no URI may hold
    write(frame[1500:], tmp_path / "up" / f"c.{suffix}")
    write(frame[:1], tmp_path / "up" / "deeper" / f"d.{suffix}")
    upload(bucket, tmp_path / "up", f"shop/{suffix}")
    monkeypatch.setattr(reading, "UNIT_BYTES", 20_000)  # a plain text is read in ranges of bytes
    spec = spec_of(f"path: s3://shop/{suffix}/*.{suffix}")
    if suffix == "csv":
        assert len(reading.plan_units(spec, "s")) > 5
    assert shards(spec, tmp_path / "out") == expected


def test_a_partitioned_bucket_is_pruned_by_its_names(
    tmp_path: Path, expected: list[str], bucket: fs.FileSystem
) -> None:
    hive(tmp_path / "up")
    upload(bucket, tmp_path / "up", "shop/hive")
    assert shards(spec_of("path: s3://shop/hive", "format: parquet"), tmp_path / "out") == expected
    assert shards(spec_of("path: s3://shop/hive/**/*.parquet"), tmp_path / "globbed") == expected
    spec = spec_of("path: s3://shop/hive/", "where: {day: {min: 2024-01-03, below: 2024-01-05}}")
    assert [unit.path for unit in reading.plan_units(spec, "s")] == [
        "s3://shop/hive/day=2024-01-03/part-0.parquet", "s3://shop/hive/day=2024-01-04/part-0.parquet"
    ]  # fmt: skip
    with pytest.raises(SpecError, match=r"no file matches s3://shop/none/\*\.csv"):
        paths.expand("s3://shop/none/*.csv", "events[0].path", "shop.yaml")


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    os.chmod(folder, stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH)  # its user must get through
    try:
        with postgresql(folder / "cluster") as url:
            load(url)
            yield url
    finally:
        shutil.rmtree(folder)


def load(url: str) -> None:
    from adbc_driver_postgresql import dbapi

    table = pa.Table.from_pandas(log(), preserve_index=False)
    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("raw", table.set_column(1, "t", table["t"].cast(pa.timestamp("us"))))
        cursor.execute(
            "create table log as select c, t at time zone 'UTC' as t, o::bigint as o, x::numeric(12, 2) as x,"
            " md5(c)::uuid as u from raw"
        )
        connection.commit()


def test_a_query_of_postgresql_gives_the_same_histories(
    tmp_path: Path, expected: list[str], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_URL", database)
    sql = "sql: {url: '${SHOP_URL}', query: 'select c, t, o, x from log;'}"
    out = tmp_path / "out"
    assert shards(spec_of(sql), out) == expected
    manifest = (out / "manifest.json").read_text() + (out / "spec.yaml").read_text() + (out / "parts.json").read_text()
    assert database not in manifest  # an address may hold a password
    half = "sql: {url: '${SHOP_URL}', query: 'select c, t, o, x from log'}\n  where: {c: [c1, c2]}"
    preparing.prepare(spec_of(half), "s", tmp_path / "half", run=work_units.run_here)
    table = pq.read_table(next((tmp_path / "half" / "shards").iterdir()))
    assert table["customer_id"].to_pylist() == ["c1", "c2"]


def test_a_uuid_of_postgresql_is_its_text(tmp_path: Path, database: str) -> None:
    sql = f"sql: {{url: '{database}', query: 'select u::text as c, t, o, x from log'}}"
    text = shards(spec_of(sql), tmp_path / "text")
    assert shards(spec_of(sql.replace("u::text", "u")), tmp_path / "plain") == text


@pytest.mark.parametrize(
    ("url", "query", "message"),
    [
        ("{url}", "select nothing from log", r'events\[0\]\.sql: .*column "nothing" does not exist'),
        ("postgresql://shop@127.0.0.1:1/x", "select 1", "events.0..sql: .*[Cc]onnection.*refused.*; correct url"),
        ("mysql://h/x", "select 1", "'mysql' is not supported; use sqlite:///file, postgresql://"),
    ],
)
def test_a_wrong_query_or_server_is_one_error_before_any_work(
    database: str, url: str, query: str, message: str
) -> None:
    place = f"sql: {{url: '{url.format(url=database)}', query: {query}}}"
    with pytest.raises(SpecError, match=message):
        check.check_sources(spec_of(place), "shop.yaml")
