"""Compare settings and metrics of several training or pretraining runs side by side.

Reads bundles of ray_jobs.train or encoders of ray_jobs.pretrain. Logs the settings that differ, then the metrics at the
held-out origin; writes nothing.

    python -m ray_jobs.compare out/bundle out/bundle-2
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options of a comparison."""

    runs: Positional[tuple[Path, ...]]
    """Bundles of ray_jobs.train, or encoders of ray_jobs.pretrain."""
    all: bool = False
    """Also log the settings that are equal in all runs."""


def run(options: Options) -> None:
    """Raises ValueError for fewer than two runs, and for a folder that is damaged or holds no run."""
    if len(options.runs) < 2:
        raise ValueError(f"give two runs or more to compare, not {len(options.runs)}")
    found = [facts(folder) for folder in options.runs]
    settings = table([one["settings"] for one in found], same=options.all)
    metrics = table([one["metrics"] for one in found], same=True)
    names = [folder.name for folder in options.runs]
    for title, rows in (("setting", settings), ("metric", metrics)):
        LOG.info("")
        for line in aligned([[title, *names], *rows] if rows else [[f"every {title} is the same"]]):
            LOG.info(line)


def facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings and metrics of a run, by their path."""
    from clv import bundle
    from clv.models.backbones import encoders
    from clv.models.pretraining import transfer
    from clv.train.tracking import flatten

    if encoders.is_event_encoder(str(folder)):
        known = transfer.read_config(folder)
        settings, rows, metrics = known["train"] | {"objectives": known["objectives"]}, known["history"], {}
    else:
        loaded = bundle.load(folder)
        settings = loaded.config["train"] | {"dataset": loaded.config["dataset"], "cut": loaded.config["cut"]}
        rows, metrics = loaded.metrics["history"], {}
        if held_out := loaded.metrics["held_out"]:
            metrics = {"origin": held_out["origin"][:10], **loaded.metrics["models"].get("clv", {})}
    last = {f"last {name}": value for name, value in (rows[-1] if rows else {}).items() if name not in ("phase",)}
    record = folder.absolute().with_name(folder.absolute().name + ".run") / "run.json"
    if record.is_file():
        read = json.loads(record.read_text(encoding="utf-8"))
        last |= {"job seconds": read["seconds"], "commit": (read["git_commit"] or "")[:12]}
    return {"settings": flatten(settings, joint="."), "metrics": metrics | last}


def table(columns: Sequence[Mapping[str, Any]], *, same: bool) -> list[list[str]]:
    """A row per name that any column has; unless `same`, only where the columns differ."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(_text(column.get(name, "")) for column in columns)] for name in names]
    return [row for row in rows if same or len(set(row[1:])) > 1]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    execute("compare", Options, run, __doc__)


if __name__ == "__main__":
    main()
