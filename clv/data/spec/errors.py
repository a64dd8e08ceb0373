"""Error messages for a YAML file: one line per mistake with file, key and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Returns " (did you mean X?)" for the closest known word, else the list of known words, else an empty text."""
    near = difflib.get_close_matches(word, known, 1, 0.6)
    if not near:
        lower = {name.lower(): name for name in known}
        near = [lower[hit] for hit in difflib.get_close_matches(word.lower(), list(lower), 1, 0.6)]
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(map(str, known))})" if known else ""


class Loader(yaml.SafeLoader):
    """YAML loader that raises an error for a duplicate key; YAML itself would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# Names that pydantic puts into a location for the branch of a union it tried.
_BRANCH = re.compile(r"^(function-|EventType$|constrained-|str$|float$)")
_REMEDY = {"missing": "add it", "extra_forbidden": "remove it or correct its name"}


def describe_mistakes(error: ValidationError, place: str, whole: Any) -> str:
    """Returns one line per mistake that pydantic found in the file `place` of model `whole`: file, key and remedy."""
    lines = []
    for item in error.errors(include_url=False):
        path = [part for part in item["loc"] if isinstance(part, int) or not _BRANCH.match(part)]
        if item["type"] == "string_type" and isinstance(item["input"], dict) and len(path) < len(item["loc"]):
            continue  # the other branch of the union has the useful message
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "the file"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key{did_you_mean(str(path[-1]), _known_keys(path[:-1], whole))}"
        elif item["type"] in _REMEDY:
            message = f"is missing: {_REMEDY[item['type']]}"
        elif item["type"] not in ("value_error", "model_type"):
            message = f"{message}, not {item['input']!r}"
        lines.append(f"{place}: {key}: {message}")
    return "\n".join(dict.fromkeys(lines))


def _known_keys(path: Sequence[int | str], whole: Any) -> list[str]:
    model: Any = whole
    for part in path:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = _model_in(field.annotation) if field is not None else None
    return list(model.model_fields) if model is not None else []


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_model_in(part) for part in getattr(annotation, "__args__", ())]
    return next((model for model in inner if model is not None), None)
