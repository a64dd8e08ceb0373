"""Heartbeats: written and read, deleted after an hour, and the replicas that are alive."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from clv.serve.rollout.heartbeat import Heartbeat, HeartbeatMonitor, RequestCounts, read_heartbeats, write_heartbeat


def test_a_replica_is_alive_while_its_sequence_grows(tmp_path: Path) -> None:
    clock = [0.0]
    monitor = HeartbeatMonitor(tmp_path, now=lambda: clock[0])

    def at(second: float, **beats: int) -> list[str]:
        clock[0] = second
        for name, sequence in beats.items():
            write_heartbeat(
                tmp_path,
                Heartbeat(
                    replica=name,
                    sequence=sequence,
                    every_s=2,
                    in_service="v1",
                    counts={"v1": RequestCounts(answered=sequence)},
                ),
            )
        return [heartbeat.replica for heartbeat in monitor.live_replicas()]

    assert at(0, a=1, dead=7) == []
    assert at(1, a=2, b=1) == ["a"]
    assert at(2, a=3, b=2) == ["a", "b"]
    assert at(9, b=3) == ["a", "b"]
    assert at(13) == ["b"]
    assert at(14, a=4) == ["a", "b"]


def test_heartbeats_older_than_an_hour_are_deleted(tmp_path: Path) -> None:
    write_heartbeat(tmp_path, Heartbeat(replica="old", sequence=1, every_s=1, in_service="v1"))
    write_heartbeat(tmp_path, Heartbeat(replica="new", sequence=1, every_s=1, in_service="v1"))
    an_hour_ago = time.time() - 4_000
    os.utime(tmp_path / "serving/old.json", (an_hour_ago, an_hour_ago))
    assert [heartbeat.replica for heartbeat in read_heartbeats(tmp_path)] == ["new"]
    assert not (tmp_path / "serving/old.json").exists()
    assert json.loads((tmp_path / "serving/new.json").read_text())["sequence"] == 1


def test_a_heartbeat_is_read_as_it_was_written(tmp_path: Path) -> None:
    more = {"candidate": "v2", "failed": {"v3": "x"}, "counts": {"v1": RequestCounts(errors=1)}, "http_answers": 5}
    heartbeat = Heartbeat(replica="r", sequence=3, every_s=1.5, in_service="v1", comparison={"skipped": 0}, **more)
    write_heartbeat(tmp_path, heartbeat)
    assert read_heartbeats(tmp_path) == [heartbeat]
