"""Who was erased: salted hashes in proof files, by which later runs keep those customers out of what they read."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clv.data.books import REJECTS, Books
from clv.data.events import stable_hash
from clv.data.spec import DatasetSpec

FOLDER = "erasures"
REASON = "customer was erased"


@dataclass(frozen=True)
class Erasure:
    """One list of customers: hashes of salt + id, and when (us UTC)."""

    salt: str
    customers: NDArray[np.int64]
    at: int

    @classmethod
    def of(cls, ids: Iterable[str], at: int) -> Self:
        salt = secrets.token_hex(16)
        return cls(salt, np.unique(_salted(pa.array(list(ids), pa.string()), salt)), at)

    def to_json(self) -> dict[str, Any]:
        hashes = [f"{number:016x}" for number in self.customers.view(np.uint64).tolist()]
        return {"salt": self.salt, "at_us": self.at, "customers": hashes}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        hashes = np.array([int(text, 16) for text in raw["customers"]], np.uint64).view(np.int64)
        return cls(raw["salt"], hashes, raw["at_us"])


@dataclass(frozen=True)
class Erased:
    """All erasures of a histories folder."""

    erasures: Sequence[Erasure] = field(default=())

    @classmethod
    def load(cls, folder: Path) -> Self:
        paths = sorted((folder / FOLDER).glob("*.json"))
        return cls([Erasure.from_json(json.loads(path.read_text(encoding="utf-8"))["erased"]) for path in paths])

    def __len__(self) -> int:
        return len(self.erasures)

    def mask(self, ids: Any, time: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Whether each row is of an erased customer, and of a `time` (us) before the erasure."""
        found = np.zeros(len(ids), bool)
        for erasure in self.erasures:
            hit = np.isin(_salted(ids, erasure.salt), erasure.customers)
            found |= hit if time is None else hit & (time < erasure.at)
        return found


def leave_out(rows: pa.Table, erased: Erased, books: Books, table: str, path: str) -> tuple[pa.Table, pa.Table]:
    """(rows that may stay, rejects of the others, without their record); the books are changed to match."""
    timed = "event_time" in rows.column_names
    time = rows["event_time"].cast(pa.int64()).to_numpy() if timed else None
    gone = erased.mask(rows["customer_id"], time)
    count = int(gone.sum())
    if not count:
        return rows, REJECTS.empty_table()
    books.accepted -= count
    books.rejected[REASON] += count
    number = rows["row"].combine_chunks().filter(pa.array(gone)) if "row" in rows.column_names else None
    fixed = [[table] * count, ["read"] * count, [REASON] * count, [path] * count]
    rejects = [*fixed, pa.nulls(count, pa.int64()) if number is None else number, pa.nulls(count, pa.string())]
    return rows.filter(pa.array(~gone)), pa.table(rejects, schema=REJECTS)


def blanked(path: Path, spec: DatasetSpec, ids: set[str]) -> tuple[pa.Table, int]:
    """A file of rejects without the records of these customers, and how many those were; rows and reasons stay.

    A line that was no row at all loses its record if any id stands in it.
    """
    table = pq.read_table(path)
    names = {"customer_id"}.union(*(source.columns.customer_id for source in spec.events))
    names.update(*(source.columns.customer_id for source in spec.customers))
    hit = np.zeros(len(table), bool)
    for i, text in enumerate(table["record"].to_pylist()):
        if text is None:
            continue
        record = json.loads(text)
        if names & record.keys():
            values = [str(record[name]).strip() for name in record if name in names]
            hit[i] = bool(ids & {*values, "/".join(values)})
        else:
            hit[i] = any(one in text for one in ids)
    record = pc.if_else(pa.array(hit), pa.scalar(None, pa.string()), table["record"].combine_chunks())
    return table.set_column(table.column_names.index("record"), "record", record), int(hit.sum())


def _salted(ids: Any, salt: str) -> NDArray[np.int64]:
    return stable_hash(pc.binary_join_element_wise(pa.scalar(salt), ids, "|"))
