"""Draft of a dataset spec from a file: guesses the format and the meaning of the columns, and notes what to check."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from clv.data.prepare import parsing
from clv.data.sources import paths, reading
from clv.data.sources.reading import Unit
from clv.data.spec.models import DatasetSpec, Source, SpecError

SAMPLE_ROWS = 10_000

# Usual names of a column, the most specific first; compared without case, blanks and underscores.
_NAMES = {
    "customer_id": ["customerid", "householdid", "userid", "clientid", "memberid", "visitorid", "accountid", "buyerid",
                    "buyer", "customer", "household", "user", "client", "member", "account", "cust", "uid"],
    "order_id": ["orderid", "invoiceid", "invoiceno", "basketid", "transactionid", "receiptid", "ticketid", "invoice",
                 "order", "basket", "transaction", "receipt"],
    "item_id": ["itemid", "productid", "stockcode", "sku", "articleid", "materialid", "asin", "product", "item",
                "article"],
    "event_time": ["eventtime", "timestamp", "transactiontimestamp", "invoicedate", "orderdate", "purchasedate",
                   "datetime", "createdat", "paidat", "occurredat", "date", "time", "ts", "tdat", "day"],
    "quantity": ["quantity", "qty", "units", "numberofcds", "itemcount", "count"],
    "unit_price": ["unitprice", "priceperunit", "price", "itemprice"],
    "amount": ["amount", "salesvalue", "linetotal", "total", "revenue", "sales", "dollarvalue", "value", "spend",
               "paid"],
    "item_text": ["description", "productname", "itemname", "title", "name", "producttitle"],
    "item_category": ["categoryid", "category", "department", "productcategory"],
    "channel": ["channel", "storeid", "store", "shop", "country", "source"],
    "text": ["message", "reviewtext", "comment", "text"],
}  # fmt: skip
_EVENT_NAMES = ["eventtype", "behaviortype", "behaviourtype", "action", "event", "type"]
_EVENT_WORDS = {
    "purchase": ["purchase", "buy", "order", "transaction", "sale", "checkout", "2"],
    "view": ["view", "pv", "pageview", "page_view", "visit", "product_view"],
    "cart": ["cart", "addtocart", "add_to_cart", "basket"],
    "favourite": ["fav", "favourite", "favorite", "wishlist", "like"],
    "return": ["return", "refund", "cancel"],
    "click": ["click"],
    "impression": ["impression", "show"],
    "rating": ["rating"],
    "review": ["review"],
    "message": ["message"],
}
_PATTERNS = ["%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y",
             "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d", "%Y%m%d",
             "%d-%m-%Y %H:%M", "%d-%m-%Y", "%d-%b-%y", "%b %d, %Y"]  # fmt: skip


def draft(path: str, timezone: str = "UTC") -> str:
    """Returns the YAML text of a valid spec for `path`, with a comment at each guess.

    Raises SpecError where no row can be read.
    """
    files = paths.expand(path, "file", path)
    options = _reading(files[0])
    source = Source.model_validate({"path": path, **options})
    sample = _sample(source, files[0])
    found, notes = _columns(sample, source.decimal)
    form = _time_format(sample, found, notes)
    event_type = _event_type(sample, found, notes)
    if "amount" in found:
        # The total of a line suffices; the unit price is left as an unused column.
        found.pop("unit_price", None)
    return _yaml(path, timezone, options, found, form, event_type, notes, sample)


def _reading(file: str) -> dict[str, Any]:
    """Returns the format and, for CSV, delimiter, encoding and header."""
    head = paths.read_head(file)
    if head[:4] == b"PAR1" or file.lower().endswith((".parquet", ".pq")):
        return {"format": "parquet"}
    if head.lstrip()[:1] == b"{":
        return {"format": "jsonl"}
    if not head.strip():
        raise SpecError(f"{file} is empty; name a file with rows")
    options: dict[str, Any] = {"format": "csv"}
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        text = head[: head.rfind(b"\n") + 1 or None].decode(encoding)
    except UnicodeDecodeError:
        encoding = "cp1252"
        text = head.decode(encoding, errors="replace")
    if encoding != "utf-8":
        options["encoding"] = encoding
    lines = [line for line in text.splitlines() if line.strip()][:50]
    options["delimiter"] = delimiter = _delimiter(lines)
    first = lines[0].split() if delimiter == r"\s+" else next(csv.reader([lines[0]], delimiter=delimiter))
    body = [
        cell for line in lines[1:] for cell in re.split(r"\s+" if delimiter == r"\s+" else re.escape(delimiter), line)
    ]
    if all(re.fullmatch(r"[-+\d.,:/ ]*", cell) for cell in first):
        options |= {"header": False, "names": [f"column_{i + 1}" for i in range(len(first))]}
    decimals = [sum(bool(re.fullmatch(p, c)) for c in body) for p in (r"-?\d+,\d+", r"-?\d+\.\d+")]
    if delimiter != "," and decimals[0] > decimals[1]:
        options["decimal"] = ","
    return options


def _delimiter(lines: list[str]) -> str:
    def steady(sign: str) -> int:
        counts = [len(next(csv.reader([line], delimiter=sign))) for line in lines]
        return min(counts) if len(set(counts)) == 1 else 0

    best = max([",", ";", "\t", "|"], key=steady)
    if steady(best) > 1:
        return best
    words = {len(line.split()) for line in lines}
    return r"\s+" if len(words) == 1 and words != {1} else max([",", ";", "\t", "|"], key=lines[0].count)


def _sample(source: Source, file: str) -> pa.Table:
    with_group = Unit(0, "events", 0, file, 0, 1 if source.format == "parquet" else 4 << 20, 0, 0, 0)
    block = next(iter(reading.read_unit(source, with_group, file, "file")), None)
    if block is None or not len(block.rows):
        raise SpecError(f"{file} holds no rows that could be read; name another file")
    return block.rows.slice(0, SAMPLE_ROWS)


def _columns(sample: pa.Table, decimal: str) -> tuple[dict[str, str], list[str]]:
    """Returns (our column -> theirs, notes); matches names, checks numbers, uses each column once."""
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in sample.column_names}
    found: dict[str, str] = {}
    for ours, names in _NAMES.items():
        for wanted in names:
            hit = next(
                (theirs for theirs, word in plain.items() if word == wanted and theirs not in found.values()), None
            )
            if hit is not None and (ours not in ("quantity", "unit_price", "amount") or _numeric(sample[hit], decimal)):
                found[ours] = hit
                break
    notes = []
    if "event_time" not in found:
        stamped = [f.name for f in sample.schema if pa.types.is_timestamp(f.type) or pa.types.is_date(f.type)]
        rest = [name for name in sample.column_names if name not in found.values()]
        guess = (stamped or [name for name in rest if _guess_time(sample[name]) is not None] or rest[:1] or [""])[0]
        found["event_time"] = guess
        notes.append(f"event_time: no column is called like a time; {guess!r} is a guess")
    if "customer_id" not in found:
        rest = [name for name in sample.column_names if name not in found.values()]
        found["customer_id"] = (rest or sample.column_names)[0]
        notes.append(f"customer_id: no column is called like a customer; {found['customer_id']!r} is a guess")
    return found, notes


def _numeric(column: pa.ChunkedArray, decimal: str = ".") -> bool:
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return True
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return False
    values, unreadable = parsing.numbers(column, decimal)
    return bool(unreadable.mean() < 0.05 and not np.isnan(values).all())


def _guess_time(column: pa.ChunkedArray) -> str | None:
    """Returns the time format that reads nearly all values, or None."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "iso"
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        values = column.drop_null().cast(pa.float64()).to_numpy()
        middle = float(np.median(values)) if len(values) else 0.0
        if 1.9e7 < middle < 2.2e7:
            return "%Y%m%d"
        return "unix_s" if 1e8 < middle < 5e9 else "unix_ms" if 1e11 < middle < 5e12 else None
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    if _numeric(column):
        return _guess_time(pa.chunked_array([pa.array(parsing.numbers(column)[0], from_pandas=True)]))
    for form in ["iso", *_PATTERNS]:
        _, missing, bad, _ = parsing.times(column, form, "UTC")
        if bad.sum() <= 0.02 * max((~missing).sum(), 1) and not missing.all():
            return form
    return None


def _time_format(sample: pa.Table, found: dict[str, str], notes: list[str]) -> str:
    form = _guess_time(sample[found["event_time"]])
    if form is None:
        notes.append("time_format: no known format reads the times; give a strptime pattern")
        return "iso" if not _numeric(sample[found["event_time"]]) else "unix_s"
    if form.startswith(("%d/%m", "%m/%d")):
        notes.append("time_format: day and month may be the other way round")
    return form


def _event_type(sample: pa.Table, found: dict[str, str], notes: list[str]) -> Any:
    for wanted in _EVENT_NAMES:
        for name in sample.column_names:
            if re.sub(r"[^a-z0-9]", "", name.lower()) != wanted or name in found.values():
                continue
            values = [v for v in pc.unique(parsing.strings(sample[name])).to_pylist() if v is not None]
            if not 1 <= len(values) <= 50:
                continue
            mapped = {v: next((ours for ours, words in _EVENT_WORDS.items() if v.lower() in words), v) for v in values}
            unknown = [v for v, ours in mapped.items() if ours not in _EVENT_WORDS]
            if unknown:
                notes.append(f"event_type: {unknown} are none of our types and stay free types")
            return {"column": name, "map": mapped}
    notes.append("event_type: no column names the type of event, so every row counts as a purchase")
    return "purchase"


def _yaml(
    path: str, timezone: str, options: dict[str, Any], found: dict[str, str], form: str, event_type: Any,
    notes: list[str], sample: pa.Table,
) -> str:  # fmt: skip
    stem = Path(path).parent.name if any(sign in Path(path).name for sign in "*?[") else Path(path).name.split(".")[0]
    name = re.sub(r"\W+", "_", stem).strip("_").lower() or "my_shop"
    used = {*found.values(), event_type["column"] if isinstance(event_type, dict) else ""}
    checks = "".join(f"# Please check {note}\n" for note in notes)
    priced = "amount" in found or "unit_price" in found
    currency = '# The shop\'s currency, for reports.\ncurrency: "EUR"\n' if priced else ""
    event = {"path": path, **options, "columns": {ours: found[ours] for ours in _NAMES if ours in found}}
    event |= {"time_format": form, "event_type": event_type}
    events = yaml.safe_dump({"events": [event]}, sort_keys=False, allow_unicode=True, width=120)
    left = ", ".join(column for column in sample.column_names if column not in used).replace("\n", " ")
    unused = f"# Columns of the file that are not used: {left}\n" if left else ""
    drafted = f"""# Drafted from a sample of the file. Read it through, then try it: python -m ray_jobs.prepare --check
{checks}name: {json.dumps(name)}
# The shop's time zone: times without an offset are local to it, and days are counted in it.
timezone: {json.dumps(timezone)}
{currency}
{events}{unused}
# All cleaning is off unless given, for example:
# cleaning:
#   exact_duplicates: drop
#   returns: {{order_id: ["C*"], negative_quantity: true}}
#   bounds: {{amount: {{above: 0}}}}

# gross, net (of returns), or none where there are no prices.
value: "{"gross" if priced else "none"}"
horizons_days: [30, 90, 180, 365]
# prepare stops when more of the rows than this are rejected.
max_rejected_share: 0.05
"""
    DatasetSpec.parse(drafted, "the draft")
    return drafted
