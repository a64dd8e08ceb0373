"""The Python API, for data that fits in memory: the code of the jobs, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from clv import bundle as bundles
from clv.data import histories
from clv.data.clock import Clock
from clv.data.prepare import cleaning, items, mapping
from clv.data.prepare.partition import whole_events
from clv.data.sources.reading import SourceBlock
from clv.data.spec.models import DatasetSpec
from clv.forecast.predictor import Predictor
from clv.models.inputs.feature_space import Items
from clv.train import export
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, plan
from clv.train.trainer import Hooks, Row, train

PLACE = "the data frame"


@dataclass(frozen=True)
class Model:
    """A fitted model: scores data frames of events whose columns are named as in `fit`."""

    bundle: bundles.Bundle
    predictor: Predictor
    spec: DatasetSpec

    @property
    def card(self) -> str:
        """What the model is and how good, in plain words (Markdown)."""
        return self.bundle.texts["card.md"]

    def predict(
        self, events: pd.DataFrame, as_of: str | datetime | None = None, horizons_days: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """One row per customer known at `as_of` and horizon (the columns of SCORES); by default the end of `events`.

        Values in the shop's currency. Raises ValueError for an origin before the training cut.
        """
        table = to_histories(events, self.spec)
        return self.predictor.predict(table, self._origin(table, as_of), horizons_days).to_pandas()

    def portfolio(
        self, events: pd.DataFrame, as_of: str | datetime | None = None, horizons_days: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """What the customers of `events` will be worth together: one row per horizon, with the band of the total.

        Columns of `clv.forecast.scores.PORTFOLIO`, shop currency. For a part of the customers give their events only.
        """
        table = to_histories(events, self.spec)
        return self.predictor.portfolio(table, self._origin(table, as_of), horizons_days).to_pandas()

    def embed(self, events: pd.DataFrame, as_of: str | datetime | None = None) -> pd.DataFrame:
        """The customers' vectors, index customer_id, columns z0, z1, ..."""
        table = to_histories(events, self.spec)
        found = self.predictor.embed(table, self._origin(table, as_of))
        z = found["z"].combine_chunks().flatten().to_numpy().reshape(len(found), -1)
        names = [f"z{i}" for i in range(z.shape[1])]
        return pd.DataFrame(z, index=pd.Index(found["customer_id"].to_pylist(), name="customer_id"), columns=names)

    def save(self, folder: Path | str) -> str:
        """Write the bundle that the jobs and the server take; returns its version."""
        return bundles.save(self.bundle, Path(folder))

    def _origin(self, table: pa.Table, as_of: str | datetime | None) -> int:
        clock = self.predictor.clock
        end = _end(table, clock)
        return self.predictor.check_origin(end if as_of is None else clock.parse(as_of), end)


def fit(
    events: pd.DataFrame,
    columns: Mapping[str, Any],
    *,
    event_type: str | Mapping[str, Any] = "purchase",
    currency: str | None = None,
    timezone: str = "UTC",
    value: str = "gross",
    horizons_days: Sequence[int] = (30, 90, 180, 365),
    origin: str | datetime | None = None,
    config: TrainConfig | None = None,
    name: str = "dataset",
    on_epoch: Callable[[Row], None] | None = None,
    **rules: Any,
) -> Model:
    """Fit on a data frame of events, one row per line.

    columns: ours -> yours (`customer_id`, `event_time`, and what there is of `order_id`, `item_id`, `quantity`,
    `amount` or `unit_price`, `item_text`, `item_category`, `text`, `channel`, `known_at`). event_type: a constant, or
    {"column": ..., "map": {yours: ours}}. origin: nothing at or after it is used, by default the end of the log.
    rules: other keys of a dataset file, such as cleaning={...}. Raises SpecError (a ValueError) for a wrong column.
    """
    source = {"path": "memory.parquet", "columns": dict(columns), "event_type": event_type}
    plain = {"name": name, "timezone": timezone, "currency": currency, "events": [source], "value": value}
    spec = _spec(plain | {"horizons_days": list(horizons_days)} | rules)
    kept = _events(events, spec)
    table = histories.build(whole_events(kept), spec.clock)
    catalogue = items.from_events(items.seen_in_events(kept)) if items.described(spec.events[0]) else None
    dataset = Dataset(
        histories=histories.Histories.from_table(table),
        clock=spec.clock,
        value=spec.value,
        horizons=tuple(spec.horizons_days),
        items=Items.empty() if catalogue is None else Items.from_tables(catalogue, None),
        data_through=_end(table, spec.clock),
        name=spec.name,
    )
    config = (config or TrainConfig()).with_engine(kind="torch")
    phases = plan(dataset, dataset.data_through if origin is None else spec.clock.parse(origin), config)
    hooks = Hooks() if on_epoch is None else Hooks(on_epoch=lambda row, save: on_epoch(row))
    fitted = train(dataset, phases, config, hooks=hooks)
    facts = {
        "name": name,
        "currency": spec.currency,
        "timezone": timezone,
        "value": value,
        "horizons": list(spec.horizons_days),
        "discount_rate_annual": spec.discount_rate_annual,
        "spec": spec.model_dump(mode="json"),
    }
    result = export.to_bundle(dataset, phases, config, fitted, facts, list(phases.notices))
    return Model(result, Predictor(result), spec)


def load(folder: Path | str, columns: Mapping[str, Any] | None = None) -> Model:
    """A model from a bundle folder. `columns`: as in `fit`; by default those it was fitted with, else our own names."""
    found = bundles.load(folder)
    facts = found.config["dataset_facts"]
    own = {name: name for name in ("customer_id", "event_time", "order_id", "item_id", "quantity", "amount")}
    plain = facts.get("spec") or {
        "name": facts["name"],
        "timezone": facts["timezone"],
        "currency": facts["currency"],
        "value": facts["value"],
        "events": [{"path": "memory.parquet", "columns": own}],
    }
    if columns is not None:
        plain = plain | {"events": [plain["events"][0] | {"columns": dict(columns)}]}
    return Model(found, Predictor(found), _spec(plain))


def to_histories(events: pd.DataFrame, spec: DatasetSpec) -> pa.Table:
    """Histories of a data frame of events, cleaned by the rules of the spec."""
    return histories.build(whole_events(_events(events, spec)), spec.clock)


def _spec(plain: Mapping[str, Any]) -> DatasetSpec:
    """Through YAML, so that a wrong value is told as in a dataset file."""
    return DatasetSpec.parse(yaml.safe_dump(dict(plain)), PLACE)


def _events(frame: pd.DataFrame, spec: DatasetSpec) -> pa.Table:
    """Accepted events with the columns that intake adds; ValueError when the rejected share passes the spec's limit."""
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    types = {field.name: field.type for field in rows.schema}
    mapping.check_columns(spec.events[0], types, "events", PLACE, "the frame")
    taken = mapping.take(SourceBlock(rows, 0), spec.events[0], spec, PLACE)
    verdict = cleaning.customer_rules(taken.events.combine_chunks(), spec)
    kept = taken.events.filter(pa.array(verdict.accepted))
    reasons = taken.accounting.rejected + verdict.counts()
    if len(kept) == 0 or sum(reasons.values()) > spec.max_rejected_share * len(rows):
        raise ValueError(
            f"{PLACE}: {len(rows) - len(kept):,} of {len(rows):,} rows rejected ({dict(reasons)}), the limit is "
            f"{spec.max_rejected_share:.0%}; mend the data, or raise max_rejected_share"
        )
    return kept


def _end(table: pa.Table, clock: Clock) -> int:
    """us: local midnight after the last event."""
    last = pc.max(table["last_time"]).cast(pa.int64()).as_py()
    return int(clock.start_of(clock.day_of([last]) + 1)[0])
