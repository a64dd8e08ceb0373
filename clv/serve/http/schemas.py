"""Schemas of the HTTP requests and answers (pydantic). A JSON string is never read as a number."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

MAX_BODY_BYTES = 32 * 2**20
MAX_CUSTOMERS = 1_000
MAX_EVENTS_PER_CUSTOMER = 10_000
MAX_EVENTS = 100_000
MAX_POSTED = 1_000
MAX_PORTFOLIO = 10_000
MAX_HORIZONS = 32
MAX_HORIZON_DAYS = 3_650
FIRST_YEAR, LAST_YEAR = 1990, 2100

# Everything but Unicode's control characters (category Cc), as every dialect of regular expressions understands it.
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]+$"

PREDICT_EXAMPLE: dict[str, Any] = {
    "as_of": "2011-06-12",
    "horizons_days": [90],
    "customers": [
        {"customer_id": "12347"},
        {
            "customer_id": "new-customer",
            "events": [
                {
                    "event_time": "2011-06-03T14:20:00",
                    "event_type": "purchase",
                    "order_id": "536365",
                    "item_id": "85123A",
                    "quantity": 2,
                    "amount": 19.9,
                }
            ],
        },
    ],
}


EVENTS_EXAMPLE: dict[str, Any] = {
    "events": [
        {
            "event_id": "A1-1",
            "customer_id": "12347",
            "event_time": "2011-06-03T14:20:00",
            "event_type": "purchase",
            "order_id": "A1",
            "item_id": "85123A",
            "amount": 19.9,
        }
    ]
}
PORTFOLIO_EXAMPLE: dict[str, Any] = {"horizons_days": [90], "customer_ids": ["12347", "12348"]}


def _time(value: object) -> object:
    """Parses an ISO time; a year outside 1990..2100 is most likely a wrong unit or a default date."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be an ISO 8601 date or time, as 2011-06-12T14:20:00Z") from None
    if isinstance(value, datetime) and not FIRST_YEAR <= value.year <= LAST_YEAR:
        raise ValueError(f"must lie between {FIRST_YEAR} and {LAST_YEAR}")
    return value


Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=PRINTABLE)]
# The accepted texts are more than the format `date-time` of JSON schema, which requires an offset.
_DAY, _CLOCK = r"(199[0-9]|20[0-9]{2}|2100)-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", r"([01][0-9]|2[0-3]):[0-5][0-9]"
Time = Annotated[
    datetime,
    BeforeValidator(_time),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^{_DAY}(T{_CLOCK}(:[0-5][0-9](\.[0-9]{{1,6}})?)?(Z|[+-]{_CLOCK})?)?$",
            "description": "ISO 8601; without an offset in the shop's local time.",
            "examples": ["2011-06-03T14:20:00"],
        }
    ),
]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]
Horizon = Annotated[int, Field(ge=1, le=MAX_HORIZON_DAYS)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Scoring(_Request):
    as_of: Time | None = Field(
        None,
        description="Prediction time: only earlier events are used, and the horizons begin there; not before the "
        "bundle's cut. Default: the first local midnight after the newest event (of the store, or without one of the "
        "bundle, and of this request), at the latest the next midnight, at the earliest the cut.",
    )
    horizons_days: Annotated[list[Horizon], Field(min_length=1, max_length=MAX_HORIZONS)] | None = Field(
        None, description="Default: the horizons of the bundle."
    )
    model_version: Identifier | None = Field(
        None,
        description="Version of the bundle that answers, if it is loaded: during a rollout, several requests then get "
        "scores of one bundle. Default, or where it is not loaded: the service chooses. The answer holds the version.",
    )


class Event(_Request):
    """One line of an order, or any other event of a customer."""

    event_time: Time
    known_at: Time | None = Field(None, description="Time at which the shop learned of the event; default: event_time.")
    event_type: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=PRINTABLE)] = Field(
        description="purchase, return, view, cart, favourite, click, impression, rating, review, message or another."
    )
    event_id: Identifier | None = None
    order_id: Identifier | None = None
    item_id: Identifier | None = None
    quantity: Finite = 1.0
    amount: Finite | None = Field(None, description="Line total in the shop's currency, negative for a return.")
    text: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    channel: Identifier | None = None

    @model_validator(mode="after")
    def _known_after_it_happened(self) -> Self:
        known, time = self.known_at, self.event_time
        # Where one of the two has no offset, `events_table` converts both and takes the later one.
        if known is not None and (known.tzinfo is None) == (time.tzinfo is None) and known < time:
            raise ValueError("known_at lies before event_time")
        return self


class PostedEvent(Event):
    """An event for the online store."""

    customer_id: Identifier
    event_id: Identifier = Field(description="A second event with the same id and content changes nothing.")


class EventsRequest(_Request):
    """Events in any order; the service stores all of them, or none."""

    model_config = ConfigDict(json_schema_extra={"examples": [EVENTS_EXAMPLE]})

    events: Annotated[list[PostedEvent], Field(min_length=1, max_length=MAX_POSTED)]


class Customer(_Request):
    """A customer of the store, or a customer whose whole history is in `events`."""

    customer_id: Identifier
    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_EVENTS_PER_CUSTOMER)] | None = Field(
        None, description="Replaces the stored history for this request."
    )


class PredictRequest(_Scoring):
    """Customers to score, the prediction time and the horizons."""

    model_config = ConfigDict(json_schema_extra={"examples": [PREDICT_EXAMPLE]})

    customers: Annotated[list[Customer], Field(min_length=1, max_length=MAX_CUSTOMERS)]


class PortfolioRequest(_Scoring):
    """Stored customers whose total value is predicted."""

    model_config = ConfigDict(json_schema_extra={"examples": [PORTFOLIO_EXAMPLE]})

    customer_ids: Annotated[list[Identifier], Field(min_length=1, max_length=MAX_PORTFOLIO)]


class ModelRef(BaseModel):
    """Version of the bundle that answered, and the end of its training data."""

    version: str
    cut: datetime


class _Answer(BaseModel):
    model: ModelRef
    currency: str | None
    as_of: datetime
    data_through: datetime


class Score(BaseModel):
    """Scores of one customer over [origin, origin + horizon), in shop currency; values are null without prices."""

    customer_id: str
    origin: datetime
    horizon_days: int
    p_purchase: float | None
    churn_probability: float | None
    orders_mean: float | None
    aov: float | None
    value_mean: float | None
    value_median: float | None
    value_p10: float | None
    value_p90: float | None
    clv_mean: float | None
    btyd_value_mean: float | None
    extrapolated: bool
    value_rank: int | None = Field(None, description="Always null: batch scoring ranks the whole customer base.")
    value_decile: int | None = Field(None, description="Always null: see value_rank.")


class CustomerResult(BaseModel):
    """Scores of one customer; `unknown_customer` without any event before as_of, stored or in the request."""

    customer_id: str
    status: Literal["ok", "unknown_customer"]
    scores: list[Score]


class PredictResponse(_Answer):
    """Scores in the order of the request's customers."""

    results: list[CustomerResult]


class EventsResponse(BaseModel):
    """Number of events stored, and of `repeated` events that the store held already."""

    stored: int
    repeated: int


class PortfolioTotal(BaseModel):
    """Total value of the known customers over one horizon, with quantiles of the total."""

    horizon_days: int
    value_mean: float | None
    value_median: float | None
    value_p10: float | None
    value_p90: float | None


class PortfolioResponse(_Answer):
    """Totals of the `customers` with an event before as_of, without the `unknown` ones."""

    customers: int
    unknown: int
    totals: list[PortfolioTotal]


class CustomerResponse(_Answer):
    """Summary and scores of one stored customer."""

    customer_id: str
    first_time: datetime
    last_time: datetime
    tokens: int = Field(description="Orders and other events; an order counts once, whatever its lines.")
    orders: int
    amount: float | None = Field(description="Sum of purchases and returns, null without prices.")
    scores: list[Score]


class ModelResponse(_Answer):
    """Version, settings and data of the bundle in service."""

    timezone: str
    horizons_days: list[int]
    customers_stored: int | None = Field(
        description="Null without a store, and while it is down: requests must then hold the events."
    )
    max_customers: int = MAX_CUSTOMERS
    max_events: int = MAX_EVENTS


class FieldError(BaseModel):
    """Path of an invalid field, as `customers[3].events[0].amount`, and the error."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details, media type application/problem+json."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldError] = []
