"""OpenAPI document: adds request bodies and problem details, which FastAPI cannot derive."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Security
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from clv.serve.http.schemas import EventsRequest, PortfolioRequest, PredictRequest, Problem

# The middleware checks the key; this dependency only documents it.
KEY = Security(HTTPBearer(scheme_name="key", auto_error=False))
BINARY = {"schema": {"type": "string", "format": "binary"}}
_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    401: "No valid key",
    403: "The key has too small a scope",
    404: "The store holds no customer of this id (`errors` names `customer_id`), or there is no store",
    409: "An event id belongs to another event; `errors` names it. Nothing was stored",
    413: "The body is too large",
    415: "The media type is not supported here",
    422: "A field is invalid; `errors` names it",
    429: "Too many customers are waiting, or too many requests of this key; Retry-After holds the seconds to wait",
    503: "No bundle is in service, no answer in time, or the store is down; Retry-After holds the seconds to wait",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns `responses` of a route for these statuses. FastAPI's `model` would document them as application/json."""
    content = {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(model=Problem.__name__)}}}
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}


def request_body(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    """Returns `openapi_extra` of a route that parses its body itself; `examples` are bodies by their names."""
    content = {
        "schema": {"$ref": _REFERENCE.format(model=model.__name__)},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Returns the document of `app`, made once, with the schemas to which `problems` and `request_body` refer."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        models: list[type[BaseModel]] = [PredictRequest, PortfolioRequest, EventsRequest, Problem]
        _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
        made["components"]["schemas"] |= schemas["$defs"]
        app.openapi_schema = made
    return app.openapi_schema
