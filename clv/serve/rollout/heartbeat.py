"""Heartbeats of the replicas: ROOT/serving/REPLICA.json beside the registry, a folder that every replica can write.

Serve's proxy chooses the replica of an HTTP call; a rollout needs the state of every replica, hence these files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clv.data.workdir import write_text
from clv.serve.scoring.protocol import RequestCounts

FOLDER = "serving"
EXPIRY_S = 3_600.0
# A replica is dead once it has missed so many heartbeats, and so many seconds more have passed.
MAX_MISSED, GRACE_S = 4, 2.0


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """State of one replica, written every `every_s` seconds with a growing `sequence`.

    `candidate` is the version that is loaded beside the one in service; `failed` holds the error of each version that
    could not be loaded, `counts` the predictions of each loaded version.
    """

    replica: str
    sequence: int
    every_s: float
    in_service: str
    candidate: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    counts: dict[str, RequestCounts] = field(default_factory=dict)
    http_answers: int = 0
    http_errors: int = 0
    comparison: dict[str, Any] | None = None


def write_heartbeat(root: Path, heartbeat: Heartbeat) -> None:
    """Replaces the replica's file atomically."""
    write_text(root / FOLDER / f"{heartbeat.replica}.json", json.dumps(asdict(heartbeat)))


def read_heartbeats(root: Path) -> list[Heartbeat]:
    """Returns the last heartbeat of every replica, dead ones included; deletes files older than an hour."""
    found = []
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            if time.time() - path.stat().st_mtime > EXPIRY_S:
                path.unlink()
                continue
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        content["counts"] = {version: RequestCounts(**counts) for version, counts in content["counts"].items()}
        found.append(Heartbeat(**content))
    return found


class HeartbeatMonitor:
    """Finds the replicas that are alive: those whose sequence number grows. It uses only this machine's clock."""

    def __init__(self, root: Path, now: Callable[[], float] = time.monotonic) -> None:
        self.root, self._now = root, now
        self._seen: dict[str, tuple[int, float | None]] = {}

    def live_replicas(self) -> list[Heartbeat]:
        """Returns the heartbeats whose sequence number grew, between calls of this monitor, within MAX_MISSED
        intervals and GRACE_S."""
        now, found = self._now(), []
        for heartbeat in read_heartbeats(self.root):
            sequence, since = self._seen.get(heartbeat.replica, (heartbeat.sequence, None))
            if sequence != heartbeat.sequence:
                since = now
            self._seen[heartbeat.replica] = (heartbeat.sequence, since)
            if since is not None and now - since <= MAX_MISSED * heartbeat.every_s + GRACE_S:
                found.append(heartbeat)
        return found
