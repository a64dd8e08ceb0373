"""Jobs that rewrite a histories folder without reading its sources: compact, and erasing customers with a proof."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clv.cluster.preparing import choose_partitions, second_pass
from clv.cluster.work_units import Runner, remembered, run_on_ray
from clv.data.dataset import PreparedDataset
from clv.data.events import stable_hash
from clv.data.prepare import build, erasure, partition, regroup
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.erasure import Erasure
from clv.data.prepare.partition import LINES
from clv.data.prepare.publish import ITEMS_BUILT, Stock, finish
from clv.data.spec.models import SpecError
from clv.data.workdir import JOURNAL, link_tree, publish, staging_directory

LOG = logging.getLogger(__name__)


def compact(out: Path, *, run: Runner = run_on_ray, partitions: int | None = None) -> dict[str, Any]:
    """Few large line files in place of many small ones, and shards of the size a prepare would choose now.

    What `append` has left in hundreds of files is then read faster; the histories stay as they are, to the byte where
    the number of shards does. Returns the manifest. SpecError for a folder without its lines.
    """
    prepared, stock = with_lines(out)
    fitting = choose_partitions(stock.rows)
    # Shards of half or twice the usual size are no reason to build all of them again.
    near = fitting <= 2 * stock.partitions and stock.partitions <= 2 * fitting
    wanted = partitions or (stock.partitions if near else fitting)
    groups = [(sub.name, group) for sub in regroup.folders(out / LINES) for group, _ in regroup.groups(sub)]
    before = sum(len(group) for _, group in groups)
    plan = {"compact": wanted, "base": prepared.manifest["created"], "shards": prepared.manifest["shards"]}
    with staging_directory(out, plan) as folder:
        task = partial(_merge, [group for _, group in groups], folder / LINES, wanted)
        list(remembered(run, task, range(len(groups)), folder / JOURNAL / "merge"))
        LOG.info(f"{before:,} files of lines became {len(groups):,}")
        link_tree(out / "items", folder / "items")
        link_tree(out / "erasures", folder / "erasures")
        if wanted == stock.partitions:
            for name in ("shards", "rejects", f"{LINES}/{ITEMS_BUILT}"):
                link_tree(out / name, folder / name)
        else:
            LOG.info(f"{stock.rows:,} events: {wanted} shards instead of {stock.partitions}")
            link_tree(out / "rejects", folder / "rejects", lambda name: not name.startswith("part-customer-"))
            parts = second_pass(prepared.spec, stock.paths, folder, range(wanted), run)
            stock = replace(stock, partitions=wanted, parts=parts)
        manifest = finish(prepared.spec, str(out), folder, stock, lines=True)
        publish(folder, out)
    return manifest


def erase(out: Path, ids: Iterable[str], *, run: Runner = run_on_ray) -> dict[str, Any]:
    """Takes customers out of every file of the folder; returns the proof, which stays in `erasures/`.

    Shards, lines, and records of rejected rows: the shards equal those of a log without these customers, the row accounting
    count their events as rejected. Items stay: they describe goods. The proof names the customers by salted hashes
    only; later runs of prepare on the same folder keep their older events out by it. Raises ValueError for an empty
    list.
    """
    wanted = sorted(set(ids))
    if not wanted:
        raise ValueError("the list of customers to erase is empty; give one id per line")
    prepared, stock = with_lines(out)
    spec = prepared.spec
    hashes = stable_hash(wanted)
    touched = {int(p) for p in partition.partition_of(hashes, stock.partitions)}
    listed = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    last = prepared.clock.parse(prepared.manifest["last_time"])
    made = Erasure.of(wanted, max(int(datetime.now(UTC).timestamp() * 1e6), last + 1))
    with staging_directory(out, {"erase": listed, "base": prepared.manifest["created"]}) as folder:
        for name in ("shards", "items", "erasures", f"{LINES}/{ITEMS_BUILT}"):
            link_tree(out / name, folder / name)
        files = [path for sub in regroup.folders(out / LINES) for path in sorted(sub.glob("*.arrow"))]
        task = partial(_leave_out, files, folder / LINES, hashes, touched)
        gone = {"events": 0, "customers": 0}
        for result in remembered(run, task, range(len(files)), folder / JOURNAL / "leave"):
            table = result["folder"].partition("-")[0]
            gone[table] = gone.get(table, 0) + result["rows"]
        # The rejects of pass 2 come anew with their partition.
        stale = {f"part-customer-{number:05d}.parquet" for number in touched}
        blanked = erasure.blank_all(out / "rejects", folder / "rejects", spec, set(wanted), stale)
        for number in touched:
            build.shard_path(folder, number).unlink(missing_ok=True)
        built = {p["partition"]: p for p in second_pass(spec, stock.paths, folder, sorted(touched), run)}
        read = {name: _accounting_without(raw, gone.get(name, 0)) for name, raw in stock.read.items()}
        erasure.write_gone(folder / "rejects", gone, made)
        parts = [built.get(number, part) for number, part in enumerate(stock.parts)]
        manifest = finish(spec, str(out), folder, replace(stock, read=read, parts=parts), lines=True)
        left = erasure.left(folder, wanted, spec)
        if any(left.values()):
            raise RuntimeError(f"erasing failed, {out} is as it was: {left} of the listed customers are left")
        proof = _proof(made, prepared.manifest, manifest, gone, blanked) | {"left": left}
        erasure.write_proof(folder, made, proof)
        publish(folder, out)
    LOG.info(f"erased {proof['found']['customers']:,} of {len(wanted):,} listed customers, {gone['events']:,} events")
    return proof


def with_lines(out: Path) -> tuple[PreparedDataset, Stock]:
    """SpecError where the folder was prepared without its lines."""
    prepared = PreparedDataset.open(out)
    if not prepared.manifest.get("lines"):
        raise SpecError(f"{out} was prepared without its lines; prepare it again without --no-keep-lines")
    return prepared, Stock.load(out)


def _merge(groups: list[list[Path]], lines: Path, partitions: int, number: int) -> dict[str, Any]:
    group = groups[number]
    target = lines / group[0].parent.name / group[0].name
    return {"rows": regroup.merge(group, target, partitions)}


def _leave_out(
    files: list[Path], lines: Path, customers: NDArray[np.int64], partitions: set[int], number: int
) -> dict[str, Any]:
    path = files[number]
    target = lines / path.parent.name / path.name
    return {"folder": path.parent.name, "rows": regroup.without(path, target, customers, partitions)}


def _accounting_without(raw: dict[str, Any], rows: int) -> dict[str, Any]:
    accounting = RowAccounting.from_json(raw)
    accounting.accepted -= rows
    if rows:
        accounting.rejected[erasure.REASON] += rows
    return accounting.to_json()


def _proof(
    made: Erasure, before: dict[str, Any], after: dict[str, Any], gone: dict[str, int], blanked: int
) -> dict[str, Any]:
    names = ("num_customers", "num_tokens", "num_lines")
    old, new = ({s["file"]: s["sha256"] for s in manifest["shards"]} for manifest in (before, after))
    return {
        "erased": made.to_json(),
        "found": {
            "customers": before["num_customers"] - after["num_customers"],
            "events": gone["events"],
            "rows_of_the_customer_table": gone["customers"],
            "records_of_rejects": blanked,
        },
        "before": {name: before[name] for name in names},
        "after": {name: after[name] for name in names},
        "shards": {
            name: {"before": digest, "after": new.get(name)} for name, digest in old.items() if new.get(name) != digest
        },
    }
