"""Replicas say what they serve, in the folder that all of them see: ROOT/serving/REPLICA.json beside the registry.

An HTTP call reaches one replica, chosen by the proxy; whoever rolls out a bundle must hear from all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = "serving"
FORGOTTEN_S = 3_600.0
# A replica that has not signed that often, and for that long on top, is taken for dead.
MISSED, SLACK_S = 4, 2.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """What one version has done in one replica."""

    answered: int = 0
    errors: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One replica's line, written every `every_s`; `beat` grows each time. `trial`: the version loaded for a trial."""

    replica: str
    beat: int
    every_s: float
    in_service: str
    trial: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    served: dict[str, Served] = field(default_factory=dict)
    http_answers: int = 0
    http_errors: int = 0
    comparison: dict[str, Any] | None = None


def sign(root: Path, entry: Entry) -> None:
    """Write a replica's line, in one step."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{entry.replica}"
    aside.write_text(json.dumps(asdict(entry)), encoding="utf-8")
    aside.replace(folder / f"{entry.replica}.json")


def entries(root: Path) -> list[Entry]:
    """Every line there is, of replicas that died too; those untouched for an hour are removed."""
    found = []
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            if time.time() - path.stat().st_mtime > FORGOTTEN_S:
                path.unlink()
                continue
            plain = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        plain["served"] = {version: Served(**one) for version, one in plain["served"].items()}
        found.append(Entry(**plain))
    return found


class Watch:
    """Who is alive: a replica is while its beat changes. No clock of another machine is believed."""

    def __init__(self, root: Path, now: Callable[[], float] = time.monotonic) -> None:
        self.root, self._now = root, now
        self._seen: dict[str, tuple[int, float | None]] = {}

    def alive(self) -> list[Entry]:
        """Replicas whose beat has changed in the time of MISSED signatures, as far as this watch has looked."""
        now, found = self._now(), []
        for entry in entries(self.root):
            beat, since = self._seen.get(entry.replica, (entry.beat, None))
            if beat != entry.beat:
                since = now
            self._seen[entry.replica] = (entry.beat, since)
            if since is not None and now - since <= MISSED * entry.every_s + SLACK_S:
                found.append(entry)
        return found
