"""The HTTP contract: what a request may hold, what an answer holds. JSON numbers are never read from strings."""

from __future__ import annotations

from datetime import UTC, datetime
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

EXAMPLE: dict[str, Any] = {
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
    """A datetime of an ISO text; a year outside 1990..2100 most likely comes from a wrong unit or a default date."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be an ISO 8601 date or time, as 2011-06-12T14:20:00Z") from None
    if isinstance(value, datetime) and not FIRST_YEAR <= value.year <= LAST_YEAR:
        raise ValueError(f"must lie between {FIRST_YEAR} and {LAST_YEAR}")
    return value


Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=PRINTABLE)]
# What we take is wider than the format `date-time` of JSON schema, which wants an offset.
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


class Event(_Request):
    """One line of an order, or any other event of a customer."""

    event_time: Time
    known_at: Time | None = Field(None, description="When the shop learned of it; absent: at event_time.")
    event_type: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=PRINTABLE)] = Field(
        description="purchase, return, view, cart, favourite, click, impression, rating, review, message or a free one."
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
        # With one of the two in local time the shop's clock decides; a small difference is then levelled, not refused.
        if known is not None and (known.tzinfo is None) == (time.tzinfo is None) and known < time:
            raise ValueError("known_at lies before event_time")
        return self


class PostedEvent(Event):
    """An event for the store."""

    customer_id: Identifier
    event_id: Identifier = Field(description="The same id with the same content again changes nothing.")


class EventsRequest(_Request):
    """Events in any order of time; all of them are stored, or none."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra={"examples": [EVENTS_EXAMPLE]})

    events: Annotated[list[PostedEvent], Field(min_length=1, max_length=MAX_POSTED)]


class Customer(_Request):
    """A customer of the store, or, with `events`, one whose whole history comes with the request."""

    customer_id: Identifier
    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_EVENTS_PER_CUSTOMER)] | None = Field(
        None, description="Used instead of the stored history, never merged with it."
    )


class PredictRequest(_Request):
    """Whom to score, at which time, for which horizons."""

    # `model_version` would else be taken for a method of pydantic's.
    model_config = ConfigDict(
        strict=True, extra="forbid", protected_namespaces=(), json_schema_extra={"examples": [EXAMPLE]}
    )

    as_of: Time | None = Field(
        None,
        description="Only events before it are used; the horizons begin there. Not before the bundle's cut. Absent: "
        "the first local midnight after the newest event known (of the store, without one of the bundle, and of this "
        "request), but no later than the coming midnight and no earlier than the cut.",
    )
    horizons_days: Annotated[list[Horizon], Field(min_length=1, max_length=MAX_HORIZONS)] | None = Field(
        None, description="Absent: the bundle's own horizons."
    )
    model_version: Identifier | None = Field(
        None,
        description="The bundle that should answer, where it is loaded: while another one is tried or takes over, "
        "requests that belong together get scores of one. Absent, or not loaded: the service chooses. The answer "
        "names the one that answered.",
    )
    customers: Annotated[list[Customer], Field(min_length=1, max_length=MAX_CUSTOMERS)]


class PortfolioRequest(_Request):
    """Stored customers whose value together is wanted."""

    model_config = ConfigDict(
        strict=True, extra="forbid", protected_namespaces=(), json_schema_extra={"examples": [PORTFOLIO_EXAMPLE]}
    )

    as_of: Time | None = Field(None, description="As in a prediction.")
    horizons_days: Annotated[list[Horizon], Field(min_length=1, max_length=MAX_HORIZONS)] | None = Field(
        None, description="Absent: the bundle's own horizons."
    )
    model_version: Identifier | None = Field(None, description="As in a prediction.")
    customer_ids: Annotated[list[Identifier], Field(min_length=1, max_length=MAX_PORTFOLIO)]


class ModelRef(BaseModel):
    """The bundle that answered, and the end of its training data."""

    version: str
    cut: datetime


class Score(BaseModel):
    """One customer at one horizon. Money in shop currency over [origin, origin + horizon), null without prices."""

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
    value_rank: int | None = Field(None, description="Null: a rank needs the whole customer base, see batch scoring.")
    value_decile: int | None = Field(None, description="Null: a decile needs the whole customer base.")


class Result(BaseModel):
    """`unknown_customer`: neither stored nor inline history with an event before as_of; scores are empty then."""

    customer_id: str
    status: Literal["ok", "unknown_customer"]
    scores: list[Score]


class PredictResponse(BaseModel):
    """Results stand in the order of the request's customers."""

    model: ModelRef
    currency: str | None
    as_of: datetime
    data_through: datetime
    results: list[Result]


class Stored(BaseModel):
    """What became of posted events. `repeated` ones had been stored before."""

    stored: int
    repeated: int


class Total(BaseModel):
    """What the known customers are worth together over one horizon; the band is that of the sum."""

    horizon_days: int
    value_mean: float | None
    value_median: float | None
    value_p10: float | None
    value_p90: float | None


class PortfolioResponse(BaseModel):
    """`customers`: those known before as_of; the others add nothing."""

    model: ModelRef
    currency: str | None
    as_of: datetime
    data_through: datetime
    customers: int
    unknown: int
    totals: list[Total]


class CustomerResponse(BaseModel):
    """What the store holds of one customer, events before as_of counted."""

    model: ModelRef
    currency: str | None
    as_of: datetime
    data_through: datetime
    customer_id: str
    first_time: datetime
    last_time: datetime
    tokens: int = Field(description="Orders and other events; an order with its lines counts once.")
    orders: int
    amount: float | None = Field(description="Sum of purchases and returns, null without prices.")
    scores: list[Score]


class ModelResponse(BaseModel):
    """The bundle in service and the data behind it."""

    model: ModelRef
    currency: str | None
    as_of: datetime
    data_through: datetime
    timezone: str
    horizons_days: list[int]
    customers_stored: int | None = Field(description="Null without a store: only inline events can be scored.")
    max_customers: int = MAX_CUSTOMERS
    max_events: int = MAX_EVENTS


class FieldError(BaseModel):
    """Where in the request, as `customers[3].events[0].amount`, and what is wrong there."""

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


def utc(us: int) -> datetime:
    """Aware datetime of int64 microseconds UTC."""
    seconds, rest = divmod(us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
