"""A prepare on a cluster of two nodes in this process, during which something dies: run by test_prepare_faults.py.

`python prepare_driver.py SPEC OUT worker|node`. Once in each pass a busy worker is killed, if one is seen when a unit
is logged as done; or after the first unit of pass 1 a whole node. Lines of the run go to stdout.
"""

import os
import signal
import sys
from pathlib import Path

import psutil

from clv.cluster import preparing
from clv.data.spec.models import DatasetSpec
from tests.cluster.two_nodes import two_nodes
from tests.log_lines import each_line


def busy_workers() -> list[int]:
    """Processes of this cluster that run a map task now."""
    children = psutil.Process().children(recursive=True)
    return [p.pid for p in children if any("ray::Map" in part or "ReadRange" in part for part in p.cmdline())]


def main() -> None:
    spec, out, what = sys.argv[1:]
    killed: list[str] = []
    with two_nodes() as (nodes, victim):

        def watch(line: str) -> None:
            print(line, flush=True)
            if what == "worker" and line.startswith("pass ") and line[:6] not in killed:
                for pid in busy_workers()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(line[:6])
                    print(f"killed worker {pid}", flush=True)
            elif what == "node" and line.startswith("pass 1: 1/"):
                nodes.remove_node(victim, allow_graceful=False)  # SIGKILL to the raylet; its workers go with it
                print("killed a node", flush=True)

        with each_line(watch):
            preparing.prepare(DatasetSpec.load(spec), spec, Path(out), partitions=8)


if __name__ == "__main__":
    main()
