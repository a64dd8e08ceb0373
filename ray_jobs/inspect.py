"""Inspect: looks at a file and drafts a dataset spec for it. `python -m ray_jobs.inspect FILE > my_shop.yaml`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from clv.data.draft import draft
from clv.data.spec import SpecError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Guesses format, columns, time format and types of a file and prints a commented dataset spec that loads."""

    file: Annotated[str, tyro.conf.Positional]
    """Parquet, CSV or JSON lines: a path, glob, s3://, gs:// or pkg://module/file."""
    out: Path | None = None
    """Write the spec here instead of printing it."""
    timezone: str = "UTC"
    """The shop's time zone; naive times are local to it."""


def run(options: Options) -> None:
    """Raises SpecError for a file that is absent, empty or of an unknown format, or an `out` that exists."""
    text = draft(options.file, options.timezone)
    if options.out is None:
        print(text, end="")
        return
    if options.out.exists():
        raise SpecError(f"--out {options.out} exists; choose another name")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(f"wrote {options.out}; try it with: python -m ray_jobs.prepare --check --dataset {options.out}")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        run(options)
    except SpecError as error:
        print(f"inspect: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
