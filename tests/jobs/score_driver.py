"""A scoring on a cluster of two nodes in this process, during which something dies: run by test_score_faults.py.

`python score_driver.py HISTORIES BUNDLE ORIGIN OUT worker|node`. After the second shard an actor's process, or a whole
node, is killed. Lines of the run go to stdout.
"""

import os
import signal
import sys
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from clv.cluster import scoring, session
from clv.data.prepared import Prepared


def scorers() -> list[int]:
    """Processes of this cluster that hold a predictor."""
    children = psutil.Process().children(recursive=True)
    return [p.pid for p in children if any("Scorer" in part for part in p.cmdline())]


def main() -> None:
    histories, bundle, day, out, what = sys.argv[1:]
    nodes = Cluster()
    # The driver's node scores nothing: it is not the one that is lost.
    nodes.add_node(num_cpus=0, object_store_memory=200 * session.MIB, include_dashboard=False)
    ray.init(address=nodes.address, log_to_driver=False)
    workers = [nodes.add_node(num_cpus=1, object_store_memory=100 * session.MIB) for _ in range(2)]
    nodes.wait_for_nodes()
    session.quiet_data()

    def say(line: str) -> None:
        print(line, flush=True)
        if line.startswith("2/"):
            if what == "worker":
                os.kill(scorers()[0], signal.SIGKILL)
            else:
                nodes.remove_node(workers[1], allow_graceful=False)  # SIGKILL to the raylet; its workers go with it
            print(f"killed a {what}", flush=True)

    try:
        prepared = Prepared.open(histories)
        scoring.score(Path(bundle), prepared, prepared.origin(day), Path(out), workers=2, say=say)
    finally:
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    main()
