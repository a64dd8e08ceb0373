"""The OpenAPI document. Bodies are parsed by pydantic straight from bytes, so FastAPI has to be told of them here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from clv.serve.guard import OPEN_PATHS
from clv.serve.schemas import EXAMPLE, PredictRequest, Problem

_BY_ID = {"customers": [{"customer_id": "12347"}]}
_ERRORS = {
    "401": "No valid key",
    "404": "Unknown customer",
    "413": "The body is too large",
    "415": "Not JSON",
    "422": "A field is wrong; `errors` names it",
    "429": "Too many customers are waiting; Retry-After says when to come back",
    "503": "No bundle is in service, or no answer in time; Retry-After says when to come back",
}
_OF = {
    "/v1/predict": ("401", "413", "415", "422", "429", "503"),
    "/v1/customers/{customer_id}": ("401", "404", "429", "503"),
    "/v1/model": ("401", "503"),
    "/readyz": ("503",),
    "/metrics": ("401",),
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of `app`, made once."""
    if app.openapi_schema is None:
        app.openapi_schema = _complete(get_openapi(title=app.title, version=app.version, routes=app.routes))
    return app.openapi_schema


def _complete(found: dict[str, Any]) -> dict[str, Any]:
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in (PredictRequest, Problem):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    found["paths"]["/v1/predict"]["post"]["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/PredictRequest"},
                "examples": {
                    "by id and with events": {"value": EXAMPLE},
                    "by id, default time and horizons": {"value": _BY_ID},
                },
            }
        },
    }
    for path, methods in found["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            for status in _OF.get(path, ()):
                operation["responses"][status] = {
                    "description": _ERRORS[status],
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            if path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]
    return found
