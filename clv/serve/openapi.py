"""The OpenAPI document. Bodies are parsed by pydantic straight from bytes, so FastAPI has to be told of them here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from clv.serve import arrow
from clv.serve.guard import OPEN_PATHS
from clv.serve.schemas import (
    EVENTS_EXAMPLE,
    EXAMPLE,
    PORTFOLIO_EXAMPLE,
    EventsRequest,
    PortfolioRequest,
    PredictRequest,
    Problem,
)

_BY_ID = {"customers": [{"customer_id": "12347"}]}
_ERRORS = {
    "401": "No valid key",
    "403": "The key does not cover this",
    "404": "Nobody of this id is stored, or there is no store",
    "409": "An event id stands for another event; `errors` names it. Nothing was stored",
    "413": "The body is too large",
    "415": "Not a media type of this address",
    "422": "A field is wrong; `errors` names it",
    "429": "Too many customers are waiting, or too many requests of this key; Retry-After says when to come back",
    "503": "No bundle is in service, no answer in time, or the store is down; Retry-After says when to come back",
}
_KEYED = ("401", "403", "429")
_BODY = (*_KEYED, "413", "415", "422", "503")
_OF: dict[tuple[str, str], tuple[str, ...]] = {
    ("/v1/predict", "post"): _BODY,
    ("/v1/portfolio", "post"): _BODY,
    ("/v1/events", "post"): (*_BODY, "404", "409"),
    ("/v1/customers/{customer_id}", "get"): (*_KEYED, "404", "422", "503"),
    ("/v1/customers/{customer_id}", "delete"): (*_KEYED, "404", "503"),
    ("/v1/model", "get"): (*_KEYED, "503"),
    ("/readyz", "get"): ("503",),
    ("/metrics", "get"): _KEYED,
}
_BODIES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/predict": (PredictRequest, {"by id and with events": EXAMPLE, "by id, default time and horizons": _BY_ID}),
    "/v1/portfolio": (PortfolioRequest, {"by id": PORTFOLIO_EXAMPLE}),
    "/v1/events": (EventsRequest, {"an order's line": EVENTS_EXAMPLE}),
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of `app`, made once."""
    if app.openapi_schema is None:
        app.openapi_schema = _complete(get_openapi(title=app.title, version=app.version, routes=app.routes))
    return app.openapi_schema


def _complete(found: dict[str, Any]) -> dict[str, Any]:
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    models: list[type[BaseModel]] = [Problem, *(model for model, _ in _BODIES.values())]
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, (model, examples) in _BODIES.items():
        content = {
            "schema": {"$ref": f"#/components/schemas/{model.__name__}"},
            "examples": {name: {"value": value} for name, value in examples.items()},
        }
        found["paths"][path]["post"]["requestBody"] = {"required": True, "content": {"application/json": content}}
    found["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"][arrow.MEDIA] = {
        "schema": {"type": "string", "format": "binary"}
    }
    found["paths"]["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            operation["responses"].pop("422", None)
            for status in sorted(_OF.get((path, method), ())):
                operation["responses"][status] = {
                    "description": _ERRORS[status],
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            if path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]
    return found
