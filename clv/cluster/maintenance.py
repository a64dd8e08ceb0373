"""Compact a histories folder and erase customers from it, with a proof; the sources are not read."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clv.cluster.preparing import build_partitions, choose_partitions
from clv.cluster.work_units import Runner, run_on_ray, run_with_journal
from clv.data.clock import to_us
from clv.data.dataset import PreparedDataset
from clv.data.events import stable_hash
from clv.data.prepare import build, erasure, partition, regroup
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.erasure import Erasure
from clv.data.prepare.partition import ROWS
from clv.data.prepare.publish import ITEMS_BUILT, BuildRecord, write_manifest
from clv.data.spec.models import SpecError
from clv.data.workdir import JOURNAL, link_tree, staging_directory

LOG = logging.getLogger(__name__)


def compact(out: Path, *, run: Runner = run_on_ray, partitions: int | None = None) -> dict[str, Any]:
    """Merges many small row files into few large ones and rebuilds the shards if their number no longer fits the log.

    Shards whose number stays are the same to the byte. Returns the manifest. Raises SpecError for a folder without its
    rows.
    """
    prepared, record = open_changeable(out)
    fitting = choose_partitions(record.rows)
    # Shards of half or twice the usual size are not worth building all of them again.
    near = fitting <= 2 * record.num_partitions and record.num_partitions <= 2 * fitting
    wanted = partitions or (record.num_partitions if near else fitting)
    groups = [group for sub in regroup.row_folders(out / ROWS) for group, _ in regroup.file_groups(sub)]
    plan = {"compact": wanted, "base": prepared.manifest["created"], "shards": prepared.manifest["shards"]}
    with staging_directory(out, plan) as folder:

        def merge(number: int) -> dict[str, Any]:
            group = groups[number]
            target = folder / ROWS / group[0].parent.name / group[0].name
            return {"rows": regroup.merge_files(group, target, wanted)}

        list(run_with_journal(run, merge, range(len(groups)), folder / JOURNAL / "merge"))
        LOG.info(f"merged {sum(map(len, groups)):,} row files into {len(groups):,}")
        link_tree(out / "items", folder / "items")
        link_tree(out / "erasures", folder / "erasures")
        if wanted == record.num_partitions:
            for name in ("shards", "rejects", f"{ROWS}/{ITEMS_BUILT}"):
                link_tree(out / name, folder / name)
        else:
            LOG.info(f"{record.rows:,} events: {wanted} shards instead of {record.num_partitions}")
            link_tree(out / "rejects", folder / "rejects", lambda name: not name.startswith("part-customer-"))
            parts = build_partitions(prepared.spec, record.paths, folder, range(wanted), run)
            record = replace(record, num_partitions=wanted, parts=parts)
        manifest = write_manifest(prepared.spec, str(out), folder, record, keeps_rows=True)
    return manifest


def erase(out: Path, ids: Iterable[str], *, run: Runner = run_on_ray) -> dict[str, Any]:
    """Erases the customers `ids` from every file of the folder; returns the proof, which is written to `erasures/`.

    The shards then equal those of a log without these customers, and the row accounting counts their events as
    rejected. Their rows and the records of their rejects are removed; items stay, since they describe goods. The proof
    names the customers by salted hashes only, by which later runs of prepare on this folder reject their older events.
    Raises ValueError for an empty list, SpecError for a folder without its rows.
    """
    wanted = sorted(set(ids))
    if not wanted:
        raise ValueError("the list of customers to erase is empty; give one id per line")
    prepared, record = open_changeable(out)
    spec = prepared.spec
    hashes = stable_hash(wanted)
    changed = {int(p) for p in partition.partition_of(hashes, record.num_partitions)}
    ids_sha256 = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    last = prepared.clock.parse(prepared.manifest["last_time"])
    new = Erasure.create(wanted, max(to_us(datetime.now(UTC)), last + 1))
    with staging_directory(out, {"erase": ids_sha256, "base": prepared.manifest["created"]}) as folder:
        for name in ("shards", "items", "erasures", f"{ROWS}/{ITEMS_BUILT}"):
            link_tree(out / name, folder / name)
        files = [path for sub in regroup.row_folders(out / ROWS) for path in sorted(sub.glob("*.arrow"))]

        def drop(number: int) -> dict[str, Any]:
            path = files[number]
            target = folder / ROWS / path.parent.name / path.name
            return {"folder": path.parent.name, "rows": regroup.drop_customers(path, target, hashes, changed)}

        removed = Counter(events=0, customers=0)
        for result in run_with_journal(run, drop, range(len(files)), folder / JOURNAL / "drop"):
            removed[result["folder"].partition("-")[0]] += result["rows"]
        # Pass 2 writes the rejects of a partition again.
        rebuilt = {f"part-customer-{number:05d}.parquet" for number in changed}
        redacted = erasure.redact_rejects(out / "rejects", folder / "rejects", spec, set(wanted), rebuilt)
        for number in changed:
            build.shard_path(folder, number).unlink(missing_ok=True)
        built = {p["partition"]: p for p in build_partitions(spec, record.paths, folder, sorted(changed), run)}
        pass_1 = {name: _reject_erased(raw, removed[name]) for name, raw in record.pass_1.items()}
        erasure.write_erased_rejects(folder / "rejects", removed, new)
        parts = [built.get(number, part) for number, part in enumerate(record.parts)]
        manifest = write_manifest(spec, str(out), folder, replace(record, pass_1=pass_1, parts=parts), keeps_rows=True)
        remaining = erasure.count_remaining(folder, wanted, spec)
        if any(remaining.values()):
            raise RuntimeError(f"erasing failed, {out} is unchanged: {remaining} rows of the listed customers remain")
        proof = _proof(new, prepared.manifest, manifest, removed, redacted) | {"remaining": remaining}
        erasure.write_proof(folder, new, proof)
    LOG.info(
        f"erased {proof['found']['customers']:,} of {len(wanted):,} listed customers, {removed['events']:,} events"
    )
    return proof


def open_changeable(out: Path) -> tuple[PreparedDataset, BuildRecord]:
    """Opens a histories folder with its build record; raises SpecError where it was prepared without its rows."""
    prepared = PreparedDataset.open(out)
    if not prepared.manifest.get("keeps_rows"):
        raise SpecError(f"{out} was prepared without its rows; prepare it again without --no-keep-rows")
    return prepared, BuildRecord.load(out)


def _reject_erased(raw: dict[str, Any], rows: int) -> dict[str, Any]:
    accounting = RowAccounting.from_json(raw)
    accounting.accepted -= rows
    if rows:
        accounting.rejected[erasure.REASON] += rows
    return accounting.to_json()


def _proof(
    erased: Erasure, before: dict[str, Any], after: dict[str, Any], removed: dict[str, int], redacted: int
) -> dict[str, Any]:
    names = ("num_customers", "num_tokens", "num_lines")
    old, new = ({s["file"]: s["sha256"] for s in manifest["shards"]} for manifest in (before, after))
    return {
        "erased": erased.to_json(),
        "found": {
            "customers": before["num_customers"] - after["num_customers"],
            "events": removed["events"],
            "rows_of_the_customer_table": removed["customers"],
            "records_of_rejects": redacted,
        },
        "before": {name: before[name] for name in names},
        "after": {name: after[name] for name in names},
        "shards": {
            name: {"before": digest, "after": new.get(name)} for name, digest in old.items() if new.get(name) != digest
        },
    }
