"""Compacting and erasing leave what one prepare of the right log would have written, also after an interruption."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.cluster import appending, maintenance
from clv.cluster.preparing import prepare
from clv.cluster.work_units import run_here, run_on_ray
from clv.data.prepare import partition
from clv.data.spec.models import DatasetSpec
from tests.cluster.dirty_shop import content, held_back, inodes
from tests.log_lines import each_line

QUIET: dict[str, Any] = {"run": run_here}


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
