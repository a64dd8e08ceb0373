"""Training examples assembled by Ray Data on any node of the cluster, for workers whose own cores are busy or few."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clv.cluster import session
from clv.models.inputs.batch import Samples
from clv.train.examples.on_storage import Piece


def load(assemble: Callable[[Piece], Samples], pieces: Iterable[Piece]) -> Iterator[Samples]:
    """Yields what `clv.train.examples.on_storage.load_here` yields; each worker has its own stream."""
    import ray

    session.quiet_data()
    # By default blocks come as they are ready.
    ray.data.DataContext.get_current().execution_options.preserve_order = True

    def make(row: dict[str, Any]) -> dict[str, Any]:
        return {"samples": pickle.dumps(assemble(pickle.loads(row["piece"])))}

    rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(make)
    for row in made.iter_rows():
        yield pickle.loads(row["samples"])
