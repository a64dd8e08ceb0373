"""Options of a job from keywords: `options_of(train.Options, histories=folder, workers=2)`."""

from __future__ import annotations

from typing import TypeVar

from ray_jobs.options import JobOptions, parse_options

T = TypeVar("T", bound=JobOptions)


def options_of(kind: type[T], **settings: object) -> T:
    """The options of a job whose command line has flags of these names and values; a tuple holds several values."""
    arguments: list[str] = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return parse_options(kind, arguments)
