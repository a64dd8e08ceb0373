"""A cluster in this process whose driver's node runs nothing, and two nodes of one CPU each: one can be lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

from clv.cluster import session


@contextmanager
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    """(the cluster, the node to lose)."""
    nodes = Cluster()
    nodes.add_node(num_cpus=0, object_store_memory=200 * session.MIB, include_dashboard=False)
    ray.init(address=nodes.address, log_to_driver=False)
    workers = [nodes.add_node(num_cpus=1, object_store_memory=100 * session.MIB) for _ in range(2)]
    nodes.wait_for_nodes()
    session.quiet_data()
    try:
        yield nodes, workers[1]
    finally:
        ray.shutdown()
        nodes.shutdown()
