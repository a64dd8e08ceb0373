"""Settings in YAML files: dataclasses are read from, and written to, a flat mapping of names to values.

A name is that of the field's option on the command line with underscores: `learning_rate`, `peft_rank`, `zero_stage`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from tyro.conf import OmitArgPrefixes

T = TypeVar("T")


class Setting(NamedTuple):
    """One field of a dataclass: the names of the fields that lead to it, the last its own, and its type."""

    path: tuple[str, ...]
    type: Any


def settings_of(kind: type) -> dict[str, Setting]:
    """All settings of a dataclass, those of its nested dataclasses included, by their names in a YAML file."""
    return dict(_walk(kind))


def _walk(kind: type, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    plain, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        marks = get_args(annotated[field.name])[1:]
        if is_dataclass(inner := plain[field.name]):
            below = prefix if OmitArgPrefixes in marks else f"{prefix}{field.name}."
            for name, setting in _walk(inner, below):  # type: ignore[arg-type]
                yield name, Setting((field.name, *setting.path), setting.type)
        else:
            renamed = [mark.name for mark in marks if getattr(mark, "name", None)]
            name = f"{prefix}{renamed[0] if renamed else field.name}".replace("-", "_")
            yield name, Setting((field.name,), plain[field.name])


def overlay(config: T, values: Mapping[str, Any], source: str) -> T:
    """The dataclass `config` with the settings of `values` (name -> value), which stand in the file `source`.

    Raises ValueError with source, name and remedy for an unknown name or a wrong value.
    """
    known = settings_of(type(config))
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else "--help lists all settings"
            raise ValueError(f"{source}: {name}: unknown setting ({meant})")
        # YAML reads an unquoted 2024-01-01 as a date.
        plain = value.isoformat() if isinstance(value, date) else value
        try:
            checked = TypeAdapter(known[name].type).validate_python(plain)
        except ValidationError as error:
            raise ValueError(f"{source}: {name} {value!r}: {error.errors()[0]['msg']}") from None
        *groups, field = known[name].path
        inner = changes
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[field] = checked
    try:
        return _replaced(config, changes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _replaced(config: T, changes: Mapping[str, Any]) -> T:
    """`config` with changed fields; changes of a nested dataclass are a mapping of their own."""
    nested = {
        name: _replaced(current, change) if is_dataclass(current := getattr(config, name)) else change
        for name, change in changes.items()
    }
    return replace(config, **nested)  # type: ignore[type-var]


def flatten(config: Any) -> dict[str, Any]:
    """All settings of a dataclass as `overlay` reads them; tuples are lists."""
    flat: dict[str, Any] = {}
    for name, setting in settings_of(type(config)).items():
        value = config
        for field in setting.path:
            value = getattr(value, field)
        flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file. Raises ValueError for a file that holds anything but names and values."""
    return _read_mapping(path, yaml.safe_load, "YAML", "settings by name")


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises ValueError for a file that holds anything else."""
    return _read_mapping(path, json.loads, "JSON", "a JSON object")


def _read_mapping(path: Path, parse: Callable[[str], Any], language: str, content: str) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not {language}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold {content}, not {type(found).__name__}")
    return found
