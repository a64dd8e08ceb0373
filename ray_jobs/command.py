"""What the jobs share on the command line: options, plain lines, exit codes 0, 1 (failed) and 2 (usage or spec)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from clv.data.spec import SpecError

T = TypeVar("T")


def execute(
    name: str,
    options: type[T],
    run: Callable[[T], None],
    description: str | None,
    failures: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeError),
) -> None:
    """Runs a job with the options of the command line; an expected failure is one line on stderr and its exit code."""
    given = tyro.cli(options, description=description)
    try:
        run(given)
    except SpecError as error:
        sys.exit(_fail(name, error, 2))
    except failures as error:
        sys.exit(_fail(name, error, 1))


def say(line: str) -> None:
    print(line, flush=True)


def _fail(name: str, error: Exception, code: int) -> int:
    print(f"{name}: {error}", file=sys.stderr)
    return code
