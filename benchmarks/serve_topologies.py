"""The other ways to put the same predictor, threads and batcher behind HTTP: bare uvicorn, and a hop to model replicas.

python -m benchmarks.serve_topologies BUNDLE STORE PORT CPU_THREADS      the bare one
"""
# No `from __future__ import annotations` here: Serve validates `args` by the class in the signature, not by its name.

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from clv.serve.deployments import AppArgs, Replica
from clv.serve.scoring.protocol import BundleFacts


def pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


class Model(Replica):
    """A model replica: no HTTP, the batcher of a service replica."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        self._start()

    def facts(self) -> BundleFacts:
        return self.backend.scorer().facts

    async def score(self, histories: bytes, as_of: int, horizons: tuple[int, ...]) -> bytes:
        return pack(await self.backend.scorer().score(unpack(histories), as_of, horizons))


class FarScorer:
    """A `Scorer` whose arithmetic is one hop away. Serve does not ask again when a model replica dies: we do."""

    def __init__(self, handle: Any, facts: BundleFacts) -> None:
        self.facts, self._handle = facts, handle

    def check(self, as_of: int, data_through: int) -> None:
        pass

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        return unpack(await self._handle.score.remote(pack(histories), as_of, horizons))


class Ingress(Replica):
    """Parses, reads the store, asks a model replica, answers."""

    def __init__(self, args: dict[str, Any], model: Any) -> None:
        super().__init__(args)
        self._model = model

    def check_health(self) -> None:
        """The model replicas have a health of their own."""

    async def __serve_build_asgi_app__(self) -> FastAPI:
        scorer = FarScorer(self._model, await self._model.facts.remote())
        self.backend.scorer = lambda pinned=None: scorer  # type: ignore[method-assign,assignment,return-value]
        return self.routes(echo_request_id=False)


def build_hop(args: AppArgs) -> Application:
    """`import_path: benchmarks.serve_topologies:build_hop`, deployments `clv` (ingress) and `model`."""
    given = AppArgs.complete(args, os.environ).model_dump(mode="json")
    model = serve.deployment(name="model")(Model).bind(given)
    return serve.deployment(name="clv")(serve.ingress()(Ingress)).bind(given, model)


def bare(bundle: Path, store: Path, port: int, cpu_threads: int) -> None:
    """One process: uvicorn, the routes, the batcher, the predictor."""
    import uvicorn

    replica = Replica({"bundle": str(bundle), "store": str(store), "cpu_threads": cpu_threads})
    replica._start()
    uvicorn.run(replica.routes(), host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    bare(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
