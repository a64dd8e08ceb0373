"""Row accounting: every row read is accepted, or rejected for one named reason, and every stage checks the sums."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

REJECTS = pa.schema(
    [
        pa.field("table", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("source", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("record", pa.string()),
    ]
)


@dataclass
class RowAccounting:
    """Counts the rows that one stage read from one table, accepted, and rejected by reason.

    `notices` count findings that deserve a look but are no reason to reject a row.
    """

    read: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)

    def add(self, other: RowAccounting) -> None:
        """Adds the counts of other rows of the same stage."""
        self.read += other.read
        self.accepted += other.accepted
        self.rejected.update(other.rejected)
        self.notices.update(other.notices)

    def add_stage(self, later: RowAccounting) -> None:
        """Adds the counts of the next stage, which has read the rows that this one accepted."""
        self.accepted = later.accepted
        self.rejected.update(later.rejected)
        self.notices.update({notice: count for notice, count in later.notices.items() if count})

    def check(self, stage: str) -> None:
        """Raises RuntimeError when rows were lost or counted twice: a defect of our code, never of the data."""
        if self.read != self.accepted + self.rejected.total():
            raise RuntimeError(
                f"{stage}: the row accounting does not balance: {self.read} rows read, {self.accepted} accepted,"
                f" {self.rejected.total()} rejected"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the counts under the keys of the manifest, the most frequent reason first."""
        return {
            "read": self.read,
            "accepted": self.accepted,
            "rejected": dict(self.rejected.most_common()),
            "notices": dict(self.notices.most_common()),
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> RowAccounting:
        """Reads what `to_json` returned."""
        return cls(raw["read"], raw["accepted"], Counter(raw["rejected"]), Counter(raw["notices"]))

    def summary(self, title: str) -> list[str]:
        """Returns the lines to log: the totals, then each reason and each notice with its count."""
        out = [f"{title}: {self.read:,} rows read, {self.accepted:,} accepted, {self.rejected.total():,} rejected"]
        out += [f"  - {count:,} {reason}" for reason, count in self.rejected.most_common()]
        return out + [f"  ! {count:,} {notice}" for notice, count in self.notices.most_common()]


class RowOutcomes:
    """Whether each row of a block is accepted, or the reason for which it is rejected: the first one given."""

    def __init__(self, num_rows: int) -> None:
        self.code = np.zeros(num_rows, np.int16)  # index of the reason, 0 for accepted
        self.reasons: list[str] = [""]

    def reject(self, mask: NDArray[np.bool_], reason: str) -> None:
        """Rejects the rows of `mask` that no earlier reason has rejected."""
        rejected = mask & (self.code == 0)
        if rejected.any():
            if reason not in self.reasons:
                self.reasons.append(reason)
            self.code[rejected] = self.reasons.index(reason)

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Mask of the accepted rows."""
        return np.asarray(self.code == 0)

    def counts(self) -> Counter[str]:
        """Returns the number of rejected rows by reason."""
        counts = np.bincount(self.code, minlength=len(self.reasons))
        return Counter({reason: int(n) for reason, n in zip(self.reasons[1:], counts[1:], strict=True) if n})

    def rejects(self, rows: pa.Table, table: str, stage: str, source: pa.Array | str, row: pa.Array | None) -> pa.Table:
        """Returns the rejected ones of `rows` in schema REJECTS; `row` holds the row numbers in the source file."""
        rejected = np.flatnonzero(self.code)
        index, count = pa.array(rejected), len(rejected)
        reason = pa.DictionaryArray.from_arrays(pa.array(self.code[rejected]), pa.array(self.reasons, pa.string()))
        columns = [
            pa.repeat(table, count),
            pa.repeat(stage, count),
            reason.cast(pa.string()),
            pa.repeat(source, count) if isinstance(source, str) else source.take(index),
            pa.nulls(count, pa.int64()) if row is None else row.take(index),
            json_rows(rows.take(index)),
        ]
        return pa.table(columns, schema=REJECTS)


def malformed_rejects(lines: list[str], table: str, source: str) -> pa.Table:
    """Returns rejects for lines that could not be parsed; each record is a JSON object with the line under `line`."""
    records = json_rows(pa.table({"line": pa.array(lines, pa.string())}))
    return rejects_of_one_reason(table, "malformed row", source, pa.nulls(len(lines), pa.int64()), records)


def rejects_of_one_reason(table: str, reason: str, source: str, row: pa.Array, record: pa.Array) -> pa.Table:
    """Returns rejects of pass 1 that share table, reason and source file."""
    fixed = [pa.repeat(value, len(row)) for value in (table, "read", reason, source)]
    return pa.table([*fixed, row, record], schema=REJECTS)


def json_rows(table: pa.Table) -> pa.Array:
    """Returns each row as a JSON object in a string, with every column of the table as a key.

    A missing value is `null`. Integers, booleans and finite floats are JSON values of that type. NaN, infinities and
    all other types are strings: lists and structs in Python's notation, control characters replaced by blanks.
    """
    parts: list[Any] = []
    for position, name in enumerate(table.column_names):
        column = table[name].combine_chunks()
        if pa.types.is_nested(column.type):
            text = pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())
        else:
            text = column.cast(pa.string())
        plain = pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)
        if pa.types.is_floating(column.type):
            text = pc.if_else(pc.is_finite(column), text, pc.binary_join_element_wise('"', text, '"', ""))
        elif not plain:
            for old, new in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
                text = pc.replace_substring(text, old, new)
            text = pc.replace_substring_regex(text, "[\x00-\x1f]", " ")
            text = pc.binary_join_element_wise('"', text, '"', "")
        label = ("" if position == 0 else ", ") + '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '": '
        parts += [pa.scalar(label), pc.fill_null(text, "null")]
    if not len(table) or not parts:
        return pa.array([], pa.string())
    return pc.binary_join_element_wise("{", *parts, "}", "")
