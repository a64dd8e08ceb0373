"""Python API for data frames that fit in memory: fit a model, predict, save and load, by the code of the jobs."""

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
from clv.data.prepare import intake, items, mapping
from clv.data.sources.reading import SourceBlock, Unit
from clv.data.spec.models import DatasetSpec
from clv.forecast.predictor import Predictor
from clv.models.inputs.feature_space import Items
from clv.train import export
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, plan
from clv.train.loop import EpochDone, Finished, Row
from clv.train.trainer import train

FRAME = "the data frame"  # what error messages name as the source


@dataclass(frozen=True)
class Model:
    """A fitted model: scores data frames of events whose columns are named as in `fit`.

    Example:
        columns = {"customer_id": "customer", "event_time": "paid_at", "amount": "paid"}
        model = clv.fit(events, columns, currency="EUR")
        model.predict(events, horizons_days=(30, 90))
    """

    bundle: bundles.Bundle
    predictor: Predictor
    spec: DatasetSpec

    @property
    def card(self) -> str:
        """The model card (Markdown): what the model was trained on and how well it forecasts."""
        return self.bundle.texts["card.md"]

    def predict(
        self, events: pd.DataFrame, as_of: str | datetime | None = None, horizons_days: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """Scores each customer known at `as_of`, by default the end of `events`, for each horizon.

        Returns one row per customer and horizon with the columns of `clv.forecast.scores.SCORES`, values in shop
        currency. Raises ValueError for an `as_of` before the training cut or an unknown horizon.
        """
        return self.predictor.predict(*self._histories(events, as_of), horizons_days).to_pandas()

    def portfolio(
        self, events: pd.DataFrame, as_of: str | datetime | None = None, horizons_days: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """Forecasts the total value of all customers in `events`: one row per horizon, with an interval of the total.

        Columns of `clv.forecast.scores.PORTFOLIO`, shop currency. For a segment pass the events of its customers only.
        """
        return self.predictor.portfolio(*self._histories(events, as_of), horizons_days).to_pandas()

    def embed(self, events: pd.DataFrame, as_of: str | datetime | None = None) -> pd.DataFrame:
        """Returns the customers' embeddings: index customer_id, columns z0, z1, ..."""
        found = self.predictor.embed(*self._histories(events, as_of))
        z = found["z"].combine_chunks().flatten().to_numpy().reshape(len(found), -1)
        names = [f"z{i}" for i in range(z.shape[1])]
        return pd.DataFrame(z, index=pd.Index(found["customer_id"].to_pylist(), name="customer_id"), columns=names)

    def save(self, folder: Path | str) -> str:
        """Writes the bundle folder that the jobs and the server load; returns its version."""
        return bundles.save(self.bundle, Path(folder))

    def _histories(self, events: pd.DataFrame, as_of: str | datetime | None) -> tuple[pa.Table, int]:
        """The histories of the events, cleaned by the rules of the spec, and the checked origin (us UTC)."""
        clock = self.predictor.clock
        table = histories.build(intake.to_event_schema(_cleaned_rows(events, self.spec)), clock)
        end = _next_midnight(table, clock)
        return table, self.predictor.check_origin(end if as_of is None else clock.parse(as_of), end)


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
    """Fits a model on a data frame of events, with one row per order line or other event.

    columns: ours -> yours (`customer_id`, `event_time`, and those that exist of `order_id`, `item_id`, `quantity`,
    `amount` or `unit_price`, `item_text`, `item_category`, `text`, `channel`, `known_at`). event_type: a constant, or
    {"column": ..., "map": {yours: ours}}. origin: nothing at or after it is used, by default the end of the log.
    on_epoch: called with the metrics of each epoch. rules: other keys of a dataset file, such as cleaning={...}.
    Raises SpecError (a ValueError) for a wrong column or key, ValueError for too many rejected rows.
    """
    source = {"path": "memory.parquet", "columns": dict(columns), "event_type": event_type}
    plain = {"name": name, "timezone": timezone, "currency": currency, "events": [source], "value": value}
    spec = _parse_spec(plain | {"horizons_days": list(horizons_days)} | rules)
    rows = _cleaned_rows(events, spec)
    table = histories.build(intake.to_event_schema(rows), spec.clock)
    catalogue = None
    if items.describes_items(spec.events[0]):
        catalogue = items.most_frequent_descriptions(items.items_in_events(rows))
    dataset = Dataset(
        histories=histories.Histories.from_table(table),
        clock=spec.clock,
        value=spec.value,
        horizons=tuple(spec.horizons_days),
        items=Items.empty() if catalogue is None else Items.from_tables(catalogue, None),
        data_through=_next_midnight(table, spec.clock),
        name=spec.name,
    )
    config = (config or TrainConfig()).with_engine(kind="torch")
    phases = plan(dataset, dataset.data_through if origin is None else spec.clock.parse(origin), config)
    for event in train(dataset, phases, config):
        match event:
            case EpochDone(row) if on_epoch is not None:
                on_epoch(row)
            case Finished(fitted):
                pass
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
    """Loads a model from a bundle folder.

    columns: as in `fit`, by default those it was fitted with, or our names for a bundle of the training job.
    """
    found = bundles.load(folder)
    facts = found.config["dataset_facts"]
    own = {name: name for name in ("customer_id", "event_time", "order_id", "item_id", "quantity", "amount")}
    plain = facts.get("spec") or {
        **{name: facts[name] for name in ("name", "timezone", "currency", "value")},
        "events": [{"path": "memory.parquet", "columns": own}],
    }
    if columns is not None:
        plain = plain | {"events": [plain["events"][0] | {"columns": dict(columns)}]}
    return Model(found, Predictor(found), _parse_spec(plain))


def _parse_spec(plain: Mapping[str, Any]) -> DatasetSpec:
    """Parses the spec from YAML, so that a wrong value raises the same error as in a dataset file."""
    return DatasetSpec.parse(yaml.safe_dump(dict(plain)), FRAME)


def _cleaned_rows(frame: pd.DataFrame, spec: DatasetSpec) -> pa.Table:
    """Returns the accepted rows with the columns of `map_events`; ValueError past the spec's limit of rejected rows."""
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    types = {field.name: field.type for field in rows.schema}
    mapping.check_columns(spec.events[0], types, "events", FRAME, "the frame")
    unit = Unit(0, "events", 0, FRAME, start=0, stop=-1, first_row=0, rows=len(rows), size=0)
    mapped = intake.map_block(SourceBlock(rows, 0), unit, spec)
    cleaned = intake.apply_customer_rules(mapped.rows, spec, [FRAME])
    accounting = mapped.accounting
    accounting.add_stage(cleaned.accounting)
    rejected = accounting.rejected.total()
    if not accounting.accepted or rejected > spec.max_rejected_share * accounting.read:
        raise ValueError(
            f"{FRAME}: {rejected:,} of {accounting.read:,} rows rejected ({dict(accounting.rejected)}), the limit is "
            f"{spec.max_rejected_share:.0%}; mend the data, or raise max_rejected_share"
        )
    return cleaned.rows


def _next_midnight(table: pa.Table, clock: Clock) -> int:
    """Returns the local midnight after the last event (us UTC)."""
    last = pc.max(table["last_time"]).cast(pa.int64()).as_py()
    return int(clock.day_start(clock.local_day([last]) + 1)[0])
