"""What the jobs share on the command line: options, plain lines, exit codes 0, 1 (failed) and 2 (usage or spec)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import tyro

from clv.data.spec.models import SpecError

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


def run_tasks(
    job: Callable[..., Any],
    engine: Literal["auto", "ray", "here"],
    few: bool,
    workers: int | None,
    object_store_mb: int,
) -> list[str]:
    """Give `job` as `run` what runs its tasks: this process alone where asked, or on auto where there is little to do;
    else Ray. Returns what Ray Data measured of its operators, one text for each of its datasets."""
    from clv.cluster import session, work_units

    if engine == "here" or (engine == "auto" and few):
        job(run=work_units.run_here)
        return []
    operators: list[str] = []
    with session.ray_session(num_cpus=workers, object_store_mb=object_store_mb):
        job(run=partial(work_units.run_on_ray, workers=workers, operators=operators))
    return operators
