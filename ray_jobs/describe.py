"""Draft a dataset spec from a file: `python -m ray_jobs.describe FILE > my_shop.yaml`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from clv.data.spec.draft import draft
from clv.data.spec.models import SpecError
from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Guesses format, columns, time format and types of a file and prints a commented dataset spec that loads."""

    file: Positional[str]
    """Parquet, CSV or JSON lines: a path, glob, s3://, gs:// or pkg://module/file."""
    out: Path | None = None
    """Write the spec here instead of printing it."""
    timezone: str = "UTC"
    """The shop's time zone, in which times without a zone are read."""


def run(options: Options) -> None:
    """Raises SpecError for a file that is absent, empty or of an unknown format, or for an `out` that exists."""
    text = draft(options.file, options.timezone)
    if options.out is None:
        print(text, end="")
        return
    if options.out.exists():
        raise SpecError(f"--out {options.out} exists; choose another name")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    LOG.info(f"wrote {options.out}; try it with: python -m ray_jobs.prepare --check --dataset {options.out}")


def main() -> None:
    execute("describe", Options, run, __doc__)


if __name__ == "__main__":
    main()
