"""Small event logs on disk for the tests of prepare, and what mapping makes of them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.check import check_sources
from clv.data.prepare.mapping import MappedBlock, map_events
from clv.data.sources import reading
from clv.data.spec.models import DatasetSpec


def spec_of(path: Path | str, columns: str = "customer_id: id, event_time: t, amount: x", **more: Any) -> DatasetSpec:
    top = {"timezone": "UTC", "currency": "EUR"} | {k: v for k, v in more.items() if k in DatasetSpec.model_fields}
    source = {k: v for k, v in more.items() if k not in top}
    lines = [f"{key}: {json.dumps(value)}" for key, value in top.items()]
    inner = [f"  {key}: {json.dumps(value)}" for key, value in source.items()]
    text = "\n".join(["name: shop", *lines, "events:", f"  path: {path}", f"  columns: {{{columns}}}", *inner])
    return DatasetSpec.parse(text, "shop.yaml")


def mapped(spec: DatasetSpec) -> MappedBlock:
    """All blocks of the first events source, joined."""
    events, rejects, accounting = [], [], RowAccounting()
    for unit in check_sources(spec, "shop.yaml"):
        for block in reading.read_unit(spec.events[0], unit, "shop.yaml", "events[0]"):
            got = map_events(block, spec.events[0], spec, unit.path)
            events.append(got.rows)
            rejects.append(got.rejects)
            accounting.add(got.accounting)
    return MappedBlock(pa.concat_tables(events), pa.concat_tables(rejects), accounting)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
