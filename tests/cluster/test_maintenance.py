"""Adding files, compacting, erasing: each leaves what one prepare of the right log would have made."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.cluster import appending, maintenance
from clv.cluster.preparing import prepare
from clv.cluster.work_units import run_here, run_on_ray
from clv.data.prepare import partition, regroup
from clv.data.sources import reading
from clv.data.spec.models import DatasetSpec, SpecError
from tests.cluster.test_preparing import write_shop
from tests.log_lines import each_line

QUIET: dict[str, Any] = {"run": run_here}
# What differs between two folders of equal content: times, and which files it came from in which pieces.
OWN = ("created", "sources", "rejects")


def content(out: Path) -> dict[str, Any]:
    """Shards by their sha256 (part of the manifest), items, row accounting, and the rejects as a sorted list."""
    manifest = json.loads((out / "manifest.json").read_text())
    rejects = pa.concat_tables([pq.read_table(out / name) for name in manifest["rejects"]]).to_pylist()
    rows = sorted((row["table"], row["stage"], row["reason"], row["record"] or "") for row in rejects)
    return {name: value for name, value in manifest.items() if name not in OWN} | {"rejected": rows}


def inodes(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (out / "shards").iterdir()}


@pytest.fixture
def shop(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> DatasetSpec:
    """Cut into many small units and files of lines."""
    monkeypatch.setattr(reading, "UNIT_ROWS", 400)
    monkeypatch.setattr(reading, "BATCH_ROWS", 128)
    monkeypatch.setattr(partition, "FLUSH_ROWS", 300)
    return write_shop(tmp_path, rng)


def held_back(folder: Path, pattern: str) -> Callable[[], None]:
    """Moves files of the log away; the function that is returned brings them back."""
    aside = folder / "later"
    aside.mkdir()
    for path in folder.glob(pattern):
        shutil.move(path, aside / path.name)

    def back() -> None:
        for path in aside.iterdir():
            os.rename(path, folder / path.name)

    return back


# log-1 holds later orders, log-0 earlier ones (late events), log-2 copies of rows that are in log-0.
@pytest.mark.parametrize("late", ["log-1*", "log-0*", "log-2*", "log-[12]*"])
def test_an_append_equals_a_prepare_of_all_files(tmp_path: Path, shop: DatasetSpec, late: str) -> None:
    prepare(shop, "shop.yaml", tmp_path / "whole", partitions=5, **QUIET)
    back = held_back(tmp_path, late)
    prepare(shop, "shop.yaml", tmp_path / "out", partitions=5, **QUIET)
    assert content(tmp_path / "out") != content(tmp_path / "whole")
    back()
    appending.append(shop, "shop.yaml", tmp_path / "out", **QUIET)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    said: list[str] = []
    with each_line(said.append):
        appending.append(shop, "shop.yaml", tmp_path / "out", run=run_here)
    assert said == [f"shop: no new files; {tmp_path / 'out'} holds all 4 files"]


def test_an_append_to_the_folder_of_an_older_version_measures_its_shards_anew(
    tmp_path: Path, shop: DatasetSpec
) -> None:
    prepare(shop, "shop.yaml", tmp_path / "out", partitions=8, **QUIET)
    parts = tmp_path / "out" / "parts.json"
    build_record = json.loads(parts.read_text())
    for part in build_record["parts"]:
        for name in ("cohort_amount_by_month", "spend_counts", "sessions"):
            part.get("stats", {}).pop(name, None)
    parts.write_text(json.dumps(build_record))
    log = pq.read_table(tmp_path / "log-0.parquet")
    one = log.filter(pa.compute.equal(log["c"], "c5")).slice(0, 1)
    pq.write_table(one.set_column(5, "x", pa.array([77.0])), tmp_path / "log-3.parquet")
    appending.append(shop, "shop.yaml", tmp_path / "out", **QUIET)
    prepare(shop, "shop.yaml", tmp_path / "whole", partitions=8, **QUIET)
    stats = [json.loads((tmp_path / name / "stats.json").read_text()) for name in ("whole", "out")]
    assert stats[0] == stats[1]


def test_an_append_builds_only_the_shards_that_new_rows_fall_into(tmp_path: Path, shop: DatasetSpec) -> None:
    prepare(shop, "shop.yaml", tmp_path / "out", partitions=8, **QUIET)
    before = inodes(tmp_path / "out")
    log = pq.read_table(tmp_path / "log-0.parquet")
    one = log.filter(pa.compute.equal(log["c"], "c5")).slice(0, 1)
    pq.write_table(one.set_column(5, "x", pa.array([77.0])), tmp_path / "log-3.parquet")
    said: list[str] = []
    with each_line(said.append):
        appending.append(shop, "shop.yaml", tmp_path / "out", run=run_here)
    after = inodes(tmp_path / "out")
    changed = {name for name in after if after[name] != before[name]}
    customer = int(partition.partition_of(partition.stable_hash(["c5"]), 8)[0])
    # Items and orders have partitions of their own; a shard built again without a change in it is the same to the byte.
    assert f"part-{customer:05d}.parquet" in changed
    assert len(changed) <= 3
    assert any(line.startswith(f"{len(changed)} of 8 partitions changed") for line in said)


def test_an_append_is_refused_where_it_could_not_equal_a_prepare(tmp_path: Path, shop: DatasetSpec) -> None:
    out = tmp_path / "out"
    prepare(shop, "shop.yaml", out, partitions=2, **QUIET)
    other = shop.model_copy(update={"timezone": "Europe/Berlin"})
    with pytest.raises(SpecError, match="differs from the spec"):
        appending.append(other, "shop.yaml", out, **QUIET)
    log = tmp_path / "log-1.parquet"
    pq.write_table(pq.read_table(log).slice(1), log)
    with pytest.raises(SpecError, match=r"log-1\.parquet has changed since"):
        appending.append(shop, "shop.yaml", out, **QUIET)
    prepare(shop, "shop.yaml", out, overwrite=True, keep_rows=False, **QUIET)
    for refused in (
        lambda: appending.append(shop, "shop.yaml", out, **QUIET),
        lambda: maintenance.compact(out, **QUIET),
    ):
        with pytest.raises(SpecError, match="was prepared without its rows"):
            refused()


def test_a_table_of_customers_that_sorts_before_a_known_one_is_refused(tmp_path: Path, shop: DatasetSpec) -> None:
    (tmp_path / "customers.csv").rename(tmp_path / "customers-2.csv")
    source = shop.customers[0].model_copy(update={"path": f"{tmp_path}/customers*.csv"})
    spec = shop.model_copy(update={"customers": [source]})
    prepare(spec, "shop.yaml", tmp_path / "out", partitions=2, **QUIET)
    (tmp_path / "customers-1.csv").write_text("id,town,age\nc1,Rom,20\n")
    with pytest.raises(SpecError, match=r"customers-1\.csv stands before files that"):
        appending.append(spec, "shop.yaml", tmp_path / "out", **QUIET)
    (tmp_path / "customers-1.csv").rename(tmp_path / "customers-3.csv")
    appending.append(spec, "shop.yaml", tmp_path / "out", **QUIET)
    prepare(spec, "shop.yaml", tmp_path / "whole", partitions=2, **QUIET)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_compact_leaves_few_files_and_the_same_histories(tmp_path: Path, shop: DatasetSpec) -> None:
    out = tmp_path / "out"
    prepare(shop, "shop.yaml", out, partitions=3, **QUIET)
    before, files, shards = content(out), len(list((out / "rows" / "events").iterdir())), inodes(out)
    partition.FLUSH_ROWS = 10_000  # the fixture puts it back
    maintenance.compact(out, partitions=3, **QUIET)
    assert content(out) == before
    assert inodes(out) == shards
    assert files > len(list((out / "rows" / "events").iterdir())) == 1
    more = maintenance.compact(out, partitions=7, **QUIET)
    assert more["num_partitions"] == 7
    prepare(shop, "shop.yaml", tmp_path / "whole", partitions=7, **QUIET)
    assert content(out) == content(tmp_path / "whole")
    assert maintenance.compact(out, **QUIET)["num_partitions"] == 1  # as many as a prepare would choose
    maintenance.compact(out, partitions=7, **QUIET)
    # And what is compact can still grow.
    pq.write_table(pq.read_table(tmp_path / "log-1.parquet").slice(0, 40), tmp_path / "log-9.parquet")
    appending.append(shop, "shop.yaml", out, **QUIET)
    prepare(shop, "shop.yaml", tmp_path / "whole", overwrite=True, partitions=7, **QUIET)
    assert content(out) == content(tmp_path / "whole")


def test_erased_customers_are_in_no_file_and_the_rest_is_as_if_they_had_never_been(
    tmp_path: Path, shop: DatasetSpec
) -> None:
    out = tmp_path / "out"
    before = prepare(shop, "shop.yaml", out, partitions=6, **QUIET)
    # c4 has rows that were rejected for their amount, c7 has exact duplicates.
    proof = maintenance.erase(out, ["c4", "c7", "nobody", "c4"], **QUIET)
    for path in sorted(out.rglob("*")):
        if path.suffix == ".parquet":
            text = json.dumps(pq.read_table(path).to_pylist(), default=str)
        elif path.suffix == ".arrow":
            with pa.memory_map(str(path)) as file:
                text = json.dumps(pa.ipc.open_file(file).read_all().to_pylist(), default=str)
            assert not set(partition.stable_hash(["c4", "c7"]).tolist()) & {
                int(word) for word in text.replace(",", " ").replace("}", " ").split() if word.lstrip("-").isdigit()
            }
        else:
            text = path.read_text() if path.is_file() else ""
        assert not {'"c4"', '"c7"', '\\"c4\\"', '\\"c7\\"'} & {word.strip(",:{}[]") for word in text.split()}, path
    kept = json.loads((out / "erasures").glob("*.json").__next__().read_text())
    assert kept == proof
    assert proof["remaining"] == {"shards": 0, "rows": 0, "rejects": 0}
    assert proof["found"]["customers"] == 2
    assert proof["found"]["records_of_rejects"] > 0
    after = json.loads((out / "manifest.json").read_text())
    assert after["row_accounting"]["events"]["read"] == before["row_accounting"]["events"]["read"]
    assert after["row_accounting"]["events"]["rejected"]["customer was erased"] == proof["found"]["events"]

    # A prepare of the same sources into the same folder heeds the proof; one of a log without them has equal shards.
    # The words for an item may differ: they are those that most lines used, the erased customers' among them.
    erased = content(out) | {"items_sha256": ""}
    prepare(shop, "shop.yaml", out, partitions=6, overwrite=True, **QUIET)
    assert content(out) | {"items_sha256": ""} == erased
    for path in tmp_path.glob("log-*.parquet"):
        log = pq.read_table(path)
        gone = pa.compute.is_in(log["c"], pa.array(["c4", "c7"]))
        pq.write_table(log.filter(pa.compute.invert(gone)), path)
    clean = prepare(shop, "shop.yaml", tmp_path / "clean", partitions=6, **QUIET)
    assert clean["shards"] == after["shards"]


def test_an_append_keeps_erased_customers_out_but_not_what_they_do_later(tmp_path: Path, shop: DatasetSpec) -> None:
    out = tmp_path / "out"
    prepare(shop, "shop.yaml", out, partitions=2, **QUIET)
    maintenance.erase(out, ["c4"], **QUIET)
    again = pa.table({"c": ["c4", "c4", "c4"], "t": [1_600_000_001, 1_600_000_002, 4_000_000_000], "o": ["x", "y", "z"],
                      "i": ["1", "1", "1"], "q": [1, 1, 1], "x": [5.0, -1.0, 6.0], "d": ["mug"] * 3})  # fmt: skip
    pq.write_table(again, tmp_path / "log-3.parquet")
    manifest = appending.append(shop, "shop.yaml", out, **QUIET)
    rows = pa.concat_tables([pq.read_table(out / shard["file"]) for shard in manifest["shards"]])
    token = [row for row in rows.to_pylist() if row["customer_id"] == "c4"]
    assert [row["amount"] for row in token] == [[6.0]]
    rejects = pa.concat_tables([pq.read_table(out / name) for name in manifest["rejects"]]).to_pylist()
    assert not [row for row in rejects if row["record"] and '"c4"' in row["record"]]


class Interruption(Exception):
    """What a kill is to the files: nothing of the job runs after it."""


@pytest.mark.parametrize("job", ["append", "erase", "compact"])
def test_each_of_them_goes_on_after_an_interruption(tmp_path: Path, shop: DatasetSpec, job: str) -> None:
    back = held_back(tmp_path, "log-1*")
    for name in ("once", "twice"):
        prepare(shop, "shop.yaml", tmp_path / name, partitions=5, **QUIET)
    back()
    before = content(tmp_path / "twice")
    jobs = {
        "append": lambda out: appending.append(shop, "shop.yaml", out, run=run_here),
        "erase": lambda out: maintenance.erase(out, ["c4", "c7", "c9"], run=run_here),
        "compact": lambda out: maintenance.compact(out, partitions=6, run=run_here),
    }

    def interrupted(line: str) -> None:
        if line.startswith("pass 2: 2/"):
            raise Interruption("now")

    jobs[job](tmp_path / "once")
    with pytest.raises(Interruption, match="now"), each_line(interrupted):
        jobs[job](tmp_path / "twice")
    assert content(tmp_path / "twice") == before
    said: list[str] = []
    with each_line(said.append):
        jobs[job](tmp_path / "twice")
    assert any(re.match(r"continuing an interrupted run: \d+ of its tasks are done", line) for line in said)
    assert content(tmp_path / "twice") == content(tmp_path / "once")


def test_an_empty_list_erases_nothing_and_says_so(tmp_path: Path, shop: DatasetSpec) -> None:
    prepare(shop, "shop.yaml", tmp_path / "out", **QUIET)
    with pytest.raises(ValueError, match="list of customers to erase is empty"):
        maintenance.erase(tmp_path / "out", [], **QUIET)


def test_groups_of_line_files_keep_their_order_and_stay_below_the_limit(tmp_path: Path, shop: DatasetSpec) -> None:
    prepare(shop, "shop.yaml", tmp_path / "out", partitions=2, **QUIET)
    folder = tmp_path / "out" / "rows" / "events"
    partition.FLUSH_ROWS = 700
    found = list(regroup.file_groups(folder))
    assert [path for group, _ in found for path in group] == sorted(folder.iterdir())
    assert max(rows for group, rows in found if len(group) > 1) <= 700


@pytest.mark.ray
def test_on_ray_each_of_them_leaves_the_same(tmp_path: Path, shop: DatasetSpec, ray_cluster: None) -> None:
    back = held_back(tmp_path, "log-1*")
    for name in ("here", "ray"):
        prepare(shop, "shop.yaml", tmp_path / name, partitions=3, **QUIET)
    back()
    for name, run in (("here", run_here), ("ray", run_on_ray)):
        out = tmp_path / name
        appending.append(shop, "shop.yaml", out, run=run)
        maintenance.erase(out, ["c4"], run=run)
        maintenance.compact(out, partitions=4, run=run)
    assert content(tmp_path / "here") == content(tmp_path / "ray")
