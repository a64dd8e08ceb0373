"""Who was erased: salted hashes in proof files, by which later runs keep those customers out of what they read."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clv.data.events import stable_hash
from clv.data.prepare.accounting import REJECTS, RowAccounting
from clv.data.spec.models import DatasetSpec
from clv.data.workdir import link, replacing, write_text

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

    @property
    def name(self) -> str:
        return f"{datetime.fromtimestamp(self.at / 1e6, UTC):%Y%m%dT%H%M%S}-{self.salt[:8]}"

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

    def named(self, ids: list[str]) -> NDArray[np.bool_]:
        """Whether each id was ever erased."""
        return self.mask(pa.array(ids, pa.string()))

    def mask(self, ids: Any, time: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Whether each row is of an erased customer, and of a `time` (us) before the erasure."""
        found = np.zeros(len(ids), bool)
        for erasure in self.erasures:
            hit = np.isin(_salted(ids, erasure.salt), erasure.customers)
            found |= hit if time is None else hit & (time < erasure.at)
        return found


def leave_out(
    rows: pa.Table, erased: Erased, accounting: RowAccounting, table: str, path: str
) -> tuple[pa.Table, pa.Table]:
    """(rows that may stay, rejects of the others, without their record); the row accounting are changed to match."""
    timed = "event_time" in rows.column_names
    time = rows["event_time"].cast(pa.int64()).to_numpy() if timed else None
    gone = erased.mask(rows["customer_id"], time)
    count = int(gone.sum())
    if not count:
        return rows, REJECTS.empty_table()
    accounting.accepted -= count
    accounting.rejected[REASON] += count
    numbered = "row" in rows.column_names
    number = rows["row"].filter(pa.array(gone)).combine_chunks() if numbered else pa.nulls(count, pa.int64())
    return rows.filter(pa.array(~gone)), _nameless(table, path, number)


def blanked(rejects: pa.Table, spec: DatasetSpec, is_gone: Callable[[list[str]], NDArray[np.bool_]]) -> pa.Table:
    """Rejects without the records of customers who are gone; rows and reasons stay.

    A line that was no row at all loses its record too: nobody can tell whose it was.
    """
    keys = [["customer_id"], *(source.columns.customer_id for source in spec.events)]
    keys += [source.columns.customer_id for source in spec.customers]
    owner: list[int] = []
    ids: list[str] = []
    lost = np.zeros(len(rejects), bool)
    for row, (table, text) in enumerate(zip(rejects["table"].to_pylist(), rejects["record"].to_pylist(), strict=True)):
        if text is None or table == "items":
            continue
        record = json.loads(text)
        for names in keys:
            if all(record.get(name) is not None for name in names):
                owner.append(row)
                ids.append("/".join(_id(record[name]) for name in names))
        lost[row] = record.keys() == {"line"}
    hit = is_gone(ids) if ids else np.zeros(0, bool)
    lost[np.array(owner, np.int64)[hit]] = True
    record = pc.if_else(pa.array(lost), pa.scalar(None, pa.string()), rejects["record"].combine_chunks())
    return rejects.set_column(rejects.column_names.index("record"), "record", record)


def blank_all(source: Path, target: Path, spec: DatasetSpec, ids: set[str], leave: set[str]) -> int:
    """The rejects of a folder as `target`, blanked, but for the files to `leave`; returns the records that went."""
    count = 0
    for path in sorted(source.glob("*.parquet")):
        if path.name in leave:
            continue
        before = pq.read_table(path)
        after = blanked(before, spec, lambda found: np.isin(found, list(ids)))
        went = after["record"].null_count - before["record"].null_count
        if went:
            _write(after, target / path.name)
        else:
            link(path, target / path.name)
        count += went
    return count


def write_gone(rejects: Path, gone: dict[str, int], made: Erasure) -> None:
    """A row of rejects for each row that went, so that rejects and row accounting still agree."""
    rows = [_nameless(table, "", pa.nulls(gone[table], pa.int64())) for table in ("events", "customers")]
    table = pa.concat_tables(rows)
    if len(table):
        _write(table, rejects / f"part-erased-{made.name}.parquet")


def write_proof(folder: Path, made: Erasure, proof: dict[str, Any]) -> None:
    write_text(folder / FOLDER / f"{made.name}.json", json.dumps(proof, indent=1) + "\n")


def left(folder: Path, ids: list[str], spec: DatasetSpec) -> dict[str, int]:
    """How often these customers still stand in the files of a folder, by kind of file: reads them all, uses no hash."""
    listed = pa.array(ids, pa.string())
    found = dict.fromkeys(("shards", "lines", "rejects"), 0)
    for path in (folder / "shards").glob("*.parquet"):
        column = pq.read_table(path, columns=["customer_id"])["customer_id"]
        found["shards"] += int(pc.sum(pc.is_in(column, listed)).as_py() or 0)
    orders = stable_hash(ids)
    for path in (folder / "lines").glob("*/*.arrow"):
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        if "customer_id" in table.column_names:
            found["lines"] += int(pc.sum(pc.is_in(table["customer_id"], listed)).as_py() or 0)
        elif "customer" in table.column_names:
            found["lines"] += int(np.isin(table["customer"].to_numpy(), orders).sum())
    for path in (folder / "rejects").glob("*.parquet"):
        rejects = pq.read_table(path)
        after = blanked(rejects, spec, lambda names: np.isin(names, ids))
        found["rejects"] += after["record"].null_count - rejects["record"].null_count
    return found


def _nameless(table: str, path: str, number: pa.Array) -> pa.Table:
    count = len(number)
    fixed = [pa.repeat(value, count) for value in (table, "read", REASON, path)]
    return pa.table([*fixed, number, pa.nulls(count, pa.string())], schema=REJECTS)


def _id(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()


def _write(table: pa.Table, path: Path) -> None:
    with replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def _salted(ids: Any, salt: str) -> NDArray[np.int64]:
    return stable_hash(pc.binary_join_element_wise(pa.scalar(salt), ids, "|"))
