"""Dataset spec: pydantic models of the YAML file with tables, columns, cleaning rules and the definition of value."""

from __future__ import annotations

import hashlib
import json
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from clv.data.clock import Clock
from clv.data.spec.errors import Loader, describe_mistakes


class SpecError(ValueError):
    """A dataset file, or a file that it names, is wrong; the message has the file, the key and the remedy."""


def _text(value: object) -> object:
    # YAML reads 2017-11-25 as a date and 42 as a number; both are meant as text here.
    if isinstance(value, date | datetime):
        return value.isoformat()
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) or value is None else [value]


Text = Annotated[str, BeforeValidator(_text)]
Names = Annotated[list[Text], BeforeValidator(_listed), Field(min_length=1)]


def _time_format(value: str) -> str:
    if value not in ("iso", "unix_s", "unix_ms") and "%" not in value:
        raise ValueError(f"{value!r} is none of iso, unix_s, unix_ms, nor a pattern such as %d/%m/%Y %H:%M")
    return value


# iso, unix_s, unix_ms or a strptime pattern.
TimeFormat = Annotated[str, AfterValidator(_time_format)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Model):
    """From `min`, before `below`."""

    min: Text | None = None
    below: Text | None = None


class Source(_Model):
    """Where a table is: a path (glob; local, s3://, gs://, pkg://module/file, ${VAR}) or SQL, and how to read it."""

    path: Text | None = None
    sql: SqlQuery | None = None
    format: Literal["parquet", "csv", "jsonl"] | None = Field(None, description="taken from the file name when absent")
    delimiter: str = Field(",", description="one character, or \\s+ for any run of white space")
    header: bool = True
    names: list[Text] | None = Field(None, description="column names, when the file has no header or a bad one")
    encoding: str = "utf-8"
    quote: str | None = '"'
    decimal: Literal[".", ","] = "."
    newlines_in_values: bool = Field(False, description="quoted values may hold line breaks; such a file is not split")
    where: dict[str, Range | Names] = Field({}, description="rows to read: {column: value, [values] or {min, below}}")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.sql is None):
            raise ValueError("give either path or sql")
        if self.delimiter != r"\s+" and len(self.delimiter) != 1:
            raise ValueError(f"delimiter {self.delimiter!r} is neither one character nor \\s+")
        if not self.header and self.names is None:
            raise ValueError("header: false needs names, the list of the columns")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise ValueError(f"encoding {self.encoding!r} is unknown: write one such as utf-8 or cp1252") from error
        return self

    def mapped_keys(self) -> list[tuple[str, str]]:
        """Returns (key below the source, column of the table) of each column that the source maps."""
        return []

    def mapped(self) -> set[str]:
        """Returns the columns of the table that the source maps."""
        return {column for _, column in self.mapped_keys()}


class SqlQuery(_Model):
    url: Text
    query: str


class EventType(_Model):
    """The column that names the event, and what its values mean; values outside the map are rejected unless kept."""

    column: Text
    map: dict[Text, Text] | None = None
    other: Literal["reject", "keep"] = "reject"


class EventColumns(_Model):
    """Our columns and the source's name of each; an id or text of several columns is joined with "/" or a blank."""

    customer_id: Names
    event_time: Text
    known_at: Text | None = None
    event_id: Text | None = None
    order_id: Names | None = None
    item_id: Names | None = None
    quantity: Text | None = None
    amount: Text | None = None
    unit_price: Text | None = None
    text: Names | None = None
    channel: Text | None = None
    item_text: Names | None = None
    item_category: Names | None = None


class EventSource(Source):
    columns: EventColumns
    time_format: TimeFormat = "iso"
    event_type: Text | EventType = "purchase"

    def mapped_keys(self) -> list[tuple[str, str]]:
        rule = self.event_type
        return _keys(self.columns) + ([] if isinstance(rule, str) else [("event_type.column", rule.column)])


class ItemColumns(_Model):
    item_id: Names
    text: Names | None = None
    category: Names | None = None
    price: Text | None = None
    image: Text | None = None


class ItemSource(Source):
    columns: ItemColumns

    def mapped_keys(self) -> list[tuple[str, str]]:
        return _keys(self.columns)


class Attribute(_Model):
    """A static attribute: known of a customer from the time in `known_at` on, or at any time when declared constant."""

    column: Text
    kind: Literal["categorical", "numeric"] = "categorical"
    constant: bool = False
    known_at: Text | None = Field(None, description="column with the time from which the value was known")
    fill: str | float | None = Field(None, description="value for missing ones; they are flagged in attr_<name>_filled")


class CustomerColumns(_Model):
    customer_id: Names


class CustomerSource(Source):
    columns: CustomerColumns
    time_format: TimeFormat = "iso"
    attributes: dict[str, Attribute] = Field(min_length=1)

    def mapped_keys(self) -> list[tuple[str, str]]:
        rules = self.attributes.items()
        keys = [(f"attributes.{name}.column", rule.column) for name, rule in rules]
        timed = [(f"attributes.{name}.known_at", rule.known_at) for name, rule in rules if rule.known_at is not None]
        return _keys(self.columns) + keys + timed

    @field_validator("attributes")
    @classmethod
    def _time_honest(cls, value: dict[str, Attribute]) -> dict[str, Attribute]:
        for name, attribute in value.items():
            if not name.isidentifier():
                raise ValueError(f"attribute {name!r}: use letters, digits and _")
            if attribute.constant == (attribute.known_at is not None):
                raise ValueError(
                    f"attribute {name!r} may have changed: write either `constant: true` if it never does, or known_at:"
                    " the column with the time from which it was known (what changes again and again belongs to events)"
                )
        return value


def _keys(columns: BaseModel) -> list[tuple[str, str]]:
    given = columns.model_dump(exclude_none=True).items()
    return [(f"columns.{key}", name) for key, names in given for name in ([names] if isinstance(names, str) else names)]


class Bounds(_Model):
    """Limits a value must respect: min and max include the limit, above and below do not."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None


class AllBounds(_Model):
    """Bounds by column; those on quantity and amount look at the magnitude of a return."""

    event_time: Range = Field(Range(), description="in the shop's time")
    quantity: Bounds = Bounds()
    unit_price: Bounds = Bounds()
    amount: Bounds = Bounds()


class Returns(_Model):
    """How a purchase row that is a return is recognised. It becomes event_type return with a negative amount."""

    order_id: Names | None = Field(None, description="patterns such as C*")
    negative_quantity: bool = False
    negative_amount: bool = False


class Cleaning(_Model):
    """Rules on rows; all off unless given. Every row a rule takes away is written to rejects/ and counted."""

    exact_duplicates: Literal["keep", "drop"] = "keep"
    duplicated_orders: Literal["keep", "drop"] = "keep"
    returns: Returns = Returns()
    ignore_items: list[Text] = Field([], description="item ids or patterns such as gift_*")
    ignore_orders: list[Text] = Field([], description="order ids or patterns such as C*")
    bounds: AllBounds = AllBounds()
    missing_amount: Literal["reject", "zero", "item_price"] = Field(
        "reject", description="for purchases and returns without a price; filled ones are flagged amount_filled"
    )


class DatasetSpec(_Model):
    """One dataset. `load` reads it from YAML and raises SpecError with file, key and remedy."""

    name: str
    description: str = ""
    timezone: str = Field(description="IANA name; naive times are local to it; days are counted in it")
    currency: str | None = None
    events: Annotated[list[EventSource], BeforeValidator(_listed), Field(min_length=1)]
    items: Annotated[list[ItemSource], BeforeValidator(_listed)] = []
    customers: Annotated[list[CustomerSource], BeforeValidator(_listed)] = []
    cleaning: Cleaning = Cleaning()
    value: Literal["gross", "net", "none"] = "gross"
    horizons_days: list[Annotated[int, Field(gt=0, le=3650)]] = Field([30, 90, 180, 365], min_length=1)
    discount_rate_annual: float = Field(0.1, ge=0, lt=10)
    max_rejected_share: float = Field(0.05, ge=0, le=1)

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, value: str) -> str:
        Clock(value)
        return value

    @field_validator("horizons_days")
    @classmethod
    def _sorted(cls, value: list[int]) -> list[int]:
        return sorted(set(value))

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSpec:
        for limit in (self.cleaning.bounds.event_time.min, self.cleaning.bounds.event_time.below):
            if limit is not None:
                self.clock.parse(limit)
        if self.value == "none":
            return self
        if self.currency is None:
            raise ValueError(f"value: {self.value} needs currency (or write value: none where there are no prices)")
        for number, source in enumerate(self.events):
            sells = not isinstance(source.event_type, str) or source.event_type in ("purchase", "return")
            columns = source.columns
            if sells and columns.amount is None and columns.unit_price is None and len(self.events) == 1:
                raise ValueError(f"value: {self.value} needs events[{number}].columns.amount or unit_price")
        return self

    @property
    def clock(self) -> Clock:
        return Clock(self.timezone)

    @classmethod
    def load(cls, path: str | Path) -> DatasetSpec:
        """Returns the spec of a YAML file. Raises SpecError with a line for every mistake in it."""
        path = Path(path)
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: cannot be read ({error}); give the path of a dataset YAML file") from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: str, place: str) -> DatasetSpec:
        """Returns the spec of a YAML text; errors name it `place`."""
        try:
            raw = yaml.load(content, Loader)
        except yaml.YAMLError as error:
            raise SpecError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(raw, dict):
            raise SpecError(f"{place}: a dataset file is a mapping of keys such as name, timezone, events")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise SpecError(describe_mistakes(error, place, cls)) from error

    def to_yaml(self) -> str:
        """Returns the spec with its defaults as YAML. ${VAR} stays as written, so that no secret is stored."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

    def sha256(self) -> str:
        """Returns the SHA-256 of the spec with its defaults, independent of key order and comments."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
