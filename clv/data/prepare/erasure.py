"""Erased customers: proof files with their salted hashes, by which later runs reject the rows of these customers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clv.data.clock import to_datetime
from clv.data.events import stable_hash
from clv.data.prepare.accounting import rejects_of_one_reason
from clv.data.prepare.mapping import MappedBlock
from clv.data.spec.models import DatasetSpec
from clv.data.workdir import atomic_write, link, write_json

FOLDER = "erasures"
REASON = "customer was erased"


@dataclass(frozen=True)
class Erasure:
    """A list of erased customers as hashes of salt and id; `at` is the time of the erasure (us UTC)."""

    salt: str
    customers: NDArray[np.int64]
    at: int

    @classmethod
    def create(cls, ids: Iterable[str], at: int) -> Self:
        """Hashes the ids with a new random salt."""
        salt = secrets.token_hex(16)
        return cls(salt, np.unique(_salted(pa.array(list(ids), pa.string()), salt)), at)

    @property
    def name(self) -> str:
        """Name of the proof file, without its suffix."""
        return f"{to_datetime(self.at):%Y%m%dT%H%M%S}-{self.salt[:8]}"

    def to_json(self) -> dict[str, Any]:
        """Returns salt, time and hashes for the proof file."""
        hashes = [f"{number:016x}" for number in self.customers.view(np.uint64).tolist()]
        return {"salt": self.salt, "at_us": self.at, "customers": hashes}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """Reads what `to_json` returned."""
        hashes = np.array([int(text, 16) for text in raw["customers"]], np.uint64).view(np.int64)
        return cls(raw["salt"], hashes, raw["at_us"])


@dataclass(frozen=True)
class Erased:
    """All erasures of a histories folder; its length is their number."""

    erasures: Sequence[Erasure] = ()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the proof files of the histories folder `folder`, which may not exist yet."""
        paths = sorted((folder / FOLDER).glob("*.json"))
        return cls([Erasure.from_json(json.loads(path.read_text(encoding="utf-8"))["erased"]) for path in paths])

    def __len__(self) -> int:
        return len(self.erasures)

    def mask(self, ids: Any, time: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Returns a mask of the rows of erased customers; with `time` (us) only of those before the erasure."""
        found = np.zeros(len(ids), bool)
        for erasure in self.erasures:
            hit = np.isin(_salted(ids, erasure.salt), erasure.customers)
            found |= hit if time is None else hit & (time < erasure.at)
        return found


def filter_erased(block: MappedBlock, erased: Erased, table: str, path: str) -> MappedBlock:
    """Moves the rows of erased customers to the rejects, without their record, and changes the accounting to match."""
    rows, accounting = block.rows, block.accounting
    time = rows["event_time"].cast(pa.int64()).to_numpy() if table == "events" else None
    gone = erased.mask(rows["customer_id"], time)
    count = int(gone.sum())
    if not count:
        return block
    accounting.accepted -= count
    accounting.rejected[REASON] += count
    number = rows["row"].combine_chunks().filter(pa.array(gone)) if table == "events" else pa.nulls(count, pa.int64())
    rejects = pa.concat_tables([_rejects_without_record(table, path, number), block.rejects])
    return MappedBlock(rows.filter(pa.array(~gone)), rejects, accounting)


def redact_records(rejects: pa.Table, spec: DatasetSpec, is_gone: Callable[[pa.Array], NDArray[np.bool_]]) -> pa.Table:
    """Returns the rejects without the records of customers for whom `is_gone` is true; rows and reasons stay.

    `is_gone` returns a mask of an array of ids. A malformed line loses its record too, because the customer it belongs
    to is unknown.
    """
    keys = [["customer_id"], *(source.columns.customer_id for source in spec.events)]
    keys += [source.columns.customer_id for source in spec.customers]
    id_row: list[int] = []
    ids: list[str] = []
    redacted = np.zeros(len(rejects), bool)
    for row, (table, text) in enumerate(zip(rejects["table"].to_pylist(), rejects["record"].to_pylist(), strict=True)):
        if text is None or table == "items":
            continue
        record = json.loads(text)
        for names in keys:
            if all(record.get(name) is not None for name in names):
                id_row.append(row)
                ids.append("/".join(_id(record[name]) for name in names))
        redacted[row] = record.keys() == {"line"}
    redacted[np.array(id_row, np.int64)[is_gone(pa.array(ids, pa.string()))]] = True
    record = pc.if_else(pa.array(redacted), pa.scalar(None, pa.string()), rejects["record"].combine_chunks())
    return rejects.set_column(rejects.column_names.index("record"), "record", record)


def redact_rejects(source: Path, target: Path, spec: DatasetSpec, ids: set[str], skip: set[str]) -> int:
    """Copies the reject files of `source` to `target` without the records of `ids`, except for files in `skip`.

    Returns the number of records removed.
    """
    count = 0
    for path in sorted(source.glob("*.parquet")):
        if path.name not in skip:
            after, removed = _without_records(path, spec, list(ids))
            if removed:
                _write(after, target / path.name)
            else:
                link(path, target / path.name)
            count += removed
    return count


def _without_records(path: Path, spec: DatasetSpec, ids: list[str]) -> tuple[pa.Table, int]:
    """Returns the rejects of a file without the records of `ids`, and the number of records removed."""
    before = pq.read_table(path)
    after = redact_records(before, spec, lambda found: np.isin(found, ids))
    return after, after["record"].null_count - before["record"].null_count


def write_erased_rejects(rejects: Path, removed: dict[str, int], erasure: Erasure) -> None:
    """Writes a reject for each removed row, so that rejects and row accounting still agree."""
    numbers = {table: pa.nulls(removed[table], pa.int64()) for table in ("events", "customers")}
    rows = pa.concat_tables([_rejects_without_record(table, "", number) for table, number in numbers.items()])
    if len(rows):
        _write(rows, rejects / f"part-erased-{erasure.name}.parquet")


def write_proof(folder: Path, erasure: Erasure, proof: dict[str, Any]) -> None:
    """Writes the proof to the `erasures` folder of a histories folder."""
    write_json(folder / FOLDER / f"{erasure.name}.json", proof)


def count_remaining(folder: Path, ids: list[str], spec: DatasetSpec) -> dict[str, int]:
    """Counts the rows of these customers in all files of a histories folder, by kind of file, by comparing ids."""
    listed = pa.array(ids, pa.string())
    found = dict.fromkeys(("shards", "rows", "rejects"), 0)
    for path in (folder / "shards").glob("*.parquet"):
        column = pq.read_table(path, columns=["customer_id"])["customer_id"]
        found["shards"] += int(pc.sum(pc.is_in(column, listed)).as_py() or 0)
    hashes = stable_hash(ids)  # files of orders hold hashes of customers only
    for path in (folder / "rows").glob("*/*.arrow"):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if "customer_id" in table.column_names:
            found["rows"] += int(pc.sum(pc.is_in(table["customer_id"], listed)).as_py() or 0)
        elif "customer" in table.column_names:
            found["rows"] += int(np.isin(table["customer"].to_numpy(), hashes).sum())
    found["rejects"] = sum(_without_records(path, spec, ids)[1] for path in (folder / "rejects").glob("*.parquet"))
    return found


def _rejects_without_record(table: str, path: str, number: pa.Array) -> pa.Table:
    return rejects_of_one_reason(table, REASON, path, number, pa.nulls(len(number), pa.string()))


def _id(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()


def _write(table: pa.Table, path: Path) -> None:
    with atomic_write(path) as staged:
        pq.write_table(table, staged, compression="zstd")


def _salted(ids: Any, salt: str) -> NDArray[np.int64]:
    return stable_hash(pc.binary_join_element_wise(pa.scalar(salt), ids, "|"))
