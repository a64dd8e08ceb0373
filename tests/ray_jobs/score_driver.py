"""A scoring on a cluster of two nodes in this process, during which something dies: run by test_score_faults.py.

`python score_driver.py HISTORIES BUNDLE ORIGIN OUT worker|node`. After the second shard an actor's process, or a whole
node, is killed. Lines of the run go to stdout.
"""

import os
import signal
import sys
from pathlib import Path

import psutil

from clv.cluster import scoring
from clv.data.dataset import PreparedDataset
from tests.cluster.two_nodes import two_nodes
from tests.log_lines import each_line


def scorers() -> list[int]:
    """Processes of this cluster that hold a predictor."""
    children = psutil.Process().children(recursive=True)
    return [p.pid for p in children if any("ShardScorer" in part for part in p.cmdline())]


def main() -> None:
    histories, bundle, day, out, what = sys.argv[1:]
    with two_nodes() as (nodes, victim):

        def watch(line: str) -> None:
            print(line, flush=True)
            if line.startswith("2/"):
                if what == "worker":
                    os.kill(scorers()[0], signal.SIGKILL)
                else:
                    nodes.remove_node(victim, allow_graceful=False)  # SIGKILL to the raylet; its workers go with it
                print(f"killed a {what}", flush=True)

        prepared = PreparedDataset.open(histories)
        with each_line(watch):
            scoring.score(Path(bundle), prepared, prepared.origin(day), Path(out), workers=2)


if __name__ == "__main__":
    main()
