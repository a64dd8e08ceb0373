"""Running a job from the command line: logging, errors and exit codes 0, 1 (failed), 2 (usage or dataset spec)."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeVar

from clv.data.spec.models import SpecError
from ray_jobs.options import JobOptions, parse_options

T = TypeVar("T", bound=JobOptions)
LOG = logging.getLogger(__name__)
FORMATS = ("text", "json")


def execute(
    name: str,
    options: type[T],
    run: Callable[[T], None],
    description: str | None,
    failures: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeError),
) -> None:
    """Runs a job with the options of the command line; an expected failure is one line on stderr and its exit code."""
    try:
        configure_logging(os.environ.get("CLV_LOG_FORMAT", "text"))
        run(parse_options(options, description=description))
    except SpecError as error:
        sys.exit(_fail(name, error, 2))
    except failures as error:
        sys.exit(_fail(name, error, 1))


def configure_logging(form: str) -> None:
    """Writes the log lines of clv and of the jobs as plain text or, for the form "json", as one JSON object a line.

    Errors go to stderr, all other lines to stdout. Raises ValueError for another form.
    """
    if form not in FORMATS:
        raise ValueError(f"CLV_LOG_FORMAT is {form!r}; choose among {', '.join(FORMATS)}")
    output = Output()
    if form == "json":
        output.setFormatter(JsonLines())
    # A job that `python -m` runs is the module __main__.
    for name in ("clv", "ray_jobs", "__main__"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [output]


class Output(logging.Handler):
    """Writes to what `sys.stdout` and `sys.stderr` are when a line is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr if record.levelno >= logging.ERROR else sys.stdout, flush=True)


class JsonLines(logging.Formatter):
    """A log line as a JSON object: time (UTC, ISO 8601), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat()
        message = super().format(record)
        return json.dumps({"time": time, "level": record.levelname, "logger": record.name, "message": message})


def _fail(name: str, error: Exception, code: int) -> int:
    LOG.error(f"{name}: {error}")
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
