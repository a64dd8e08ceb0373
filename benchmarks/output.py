"""The files that benchmarks write their results to."""

from __future__ import annotations

from pathlib import Path


def reserve(path: Path | None) -> None:
    """Creates the folder of a result file; to be called before the work starts, so that no result of minutes is lost.

    Does nothing for None, which stands for results that are only printed. Raises SystemExit for a path that is a folder
    and OSError where a folder cannot be created.
    """
    if path is None:
        return
    if path.is_dir():
        raise SystemExit(f"--out {path} is a folder; give the path of a file, for example {path / 'result.json'}")
    path.parent.mkdir(parents=True, exist_ok=True)
