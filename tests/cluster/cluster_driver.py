"""A training on a cluster of several nodes in this process, one of which is lost: run by test_training_nodes.py.

`python cluster_driver.py TASK STORAGE RESULT killed|warned`. TASK: a pickle of histories, phases and config. Lines of
the run go to stdout; what it fitted into RESULT.
"""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster as Nodes

from clv.cluster import training
from clv.cluster.options import Cluster
from clv.train.tracking import Tracking
from tests.cluster.two_nodes import two_nodes
from tests.log_lines import each_line


class Mishap:
    """Prints the lines of the run; after one that matches, a node with a worker is lost."""

    def __init__(self, nodes: Nodes, victim: object, how: str) -> None:
        self.nodes, self.victim, self.how, self.done = nodes, victim, how, 0

    def __call__(self, line: str) -> None:
        print(json.dumps(line), flush=True)
        if self.done == 0 and re.match(r"holdout, epoch \d+: saved at step 10$", line):
            self.done = 1
            if self.how == "killed":
                self._kill()
            else:
                self._warn()
        elif self.done == 1 and self.how == "warned" and re.match("notice: 1 nodes will be taken away", line):
            self.done = 2
        elif self.done == 2 and "saved at step" in line:
            self.done = 3
            self._kill()

    def _kill(self) -> None:
        """SIGKILL to the raylet; its workers go with it."""
        self.nodes.remove_node(self.victim, allow_graceful=False)

    def _warn(self) -> None:
        """What a cloud does before it takes a machine back."""
        ray_command = str(Path(sys.executable).with_name("ray"))
        subprocess.run(
            [ray_command, "drain-node", "--address", self.nodes.address, "--node-id", self.victim.node_id,
             "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds",
             "60"],
            check=True, capture_output=True,
        )  # fmt: skip


def main() -> None:
    task, storage, result, how = sys.argv[1:]
    histories, phases, config = pickle.loads(Path(task).read_bytes())
    with two_nodes() as (nodes, victim):
        cluster = Cluster(
            workers=2, min_workers=1, max_failures=1, storage=storage, checkpoint_steps=5, checkpoint_minutes=0
        )
        tracking = Tracking(folder=f"{storage}/scalars", run="run")
        with each_line(Mishap(nodes, victim, how)):
            fitted = training.train(Path(histories), phases, config, cluster, tracking)
        Path(result).write_bytes(pickle.dumps({"history": fitted.history, "weights": fitted.weights}))


if __name__ == "__main__":
    main()
