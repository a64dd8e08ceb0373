"""The application on Ray Serve: every replica answers HTTP and scores in the same process.

A second hop to a model deployment costs more than the scoring itself on CPUs; the ingress is what scales.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import pyarrow as pa
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import metrics as serve_metrics

from clv.registry import Registry
from clv.serve.http.metrics import Metrics
from clv.serve.http.rate_limits import RateLimiter
from clv.serve.http.routes import create_app
from clv.serve.http.security import check_exposure, keys_from_env
from clv.serve.rollout.follower import Follower
from clv.serve.scoring.backend import LiveBackend
from clv.serve.scoring.batching import Batching
from clv.serve.scoring.protocol import PredictorProtocol
from clv.serve.store.factory import is_folder, open_store

LOG = logging.getLogger(__name__)

THREADS = 4
EXPORT_S = 5.0


class AppArgs(BaseModel):
    """`args:` of the application in a Serve file. Keys are not here: Ray shows arguments to everybody who may look."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path | None = Field(None, description="A bundle folder. Default: CLV_BUNDLE.")
    registry: Path | None = Field(None, description="A registry, whose production version is served and followed.")
    store: str | None = Field(
        None,
        description="The online store: a folder (SQLite) or redis://HOST:PORT/DB. Default: CLV_STORE; without one, "
        "inline events only.",
    )
    device: str = "cpu"
    cpu_threads: int = Field(
        1, ge=1, description="Threads of torch and Arrow in a replica; match ray_actor_options.num_cpus."
    )
    deadline_s: float = Field(30.0, gt=0, description="A request not answered by then gets 503.")
    batching: Batching = Field(Batching(), description="How requests are joined into calls of the predictor.")
    requests_per_minute: int | None = Field(
        None,
        ge=1,
        description="Of a key that names no rate of its own. With a Redis store all replicas count together; with "
        "SQLite or no store each replica counts for itself, in memory.",
    )
    follow_registry_s: float = Field(5.0, gt=0, description="How often a replica looks at the production pointer.")

    @classmethod
    def complete(cls, args: AppArgs, env: Mapping[str, str]) -> AppArgs:
        """`args` with what they leave open taken from CLV_BUNDLE or CLV_REGISTRY, and CLV_STORE; paths made absolute,
        since a replica runs in another folder. ValueError unless exactly one of bundle and registry results."""
        found = {"bundle": args.bundle, "registry": args.registry}
        if not any(found.values()):
            from_env = {name: env.get(f"CLV_{name.upper()}") for name in found}
            found = {name: Path(value) if value else None for name, value in from_env.items()}
        named = [f"{name} {path}" for name, path in found.items() if path]
        if len(named) != 1:
            raise ValueError(
                "give the application either a bundle (args.bundle or CLV_BUNDLE) or a registry (args.registry or "
                f"CLV_REGISTRY), not {' and '.join(named) or 'neither'}"
            )
        whole: dict[str, Any] = {name: path and path.expanduser().resolve() for name, path in found.items()}
        store = args.store or env.get("CLV_STORE") or None
        if store and is_folder(store):
            store = str(Path(store).expanduser().resolve())
        return args.model_copy(update=whole | {"store": store})


class Replica:
    """What one replica holds: keys, store, the bundle behind its batcher, and the routes over them."""

    def __init__(self, args: dict[str, Any]) -> None:
        log_with_serve()
        self.args = AppArgs.model_validate(args)
        self.keys = keys_from_env(os.environ)
        self.limiter = RateLimiter(self.args.store)
        self.metrics = Metrics()
        max_wait_s = min(self.args.batching.max_wait_s, self.args.deadline_s)
        self.backend = LiveBackend(
            open_store(self.args.store, serving=True) if self.args.store else None,
            self.args.batching.model_copy(update={"max_wait_s": max_wait_s}),
            self.metrics,
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once. Until it returns the replica gets no requests: ready means loaded and warmed up."""
        check_exposure(self.keys.current(), await http_host())
        # Parsing and reading take turns with scoring; the default of a thread per CPU of the machine would fight it.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="clv"))
        await asyncio.to_thread(self._start)
        if self.args.registry:
            replica = serve.get_replica_context().replica_id.unique_id
            registry = Registry(self.args.registry)
            follower = Follower(self.backend, registry, self.load, replica, self.args.follow_registry_s)
            self._tasks.append(asyncio.create_task(follower.run()))
        self._tasks.append(asyncio.create_task(MetricsExporter(self.metrics).run()))
        # Serve's proxy writes the X-Request-ID header itself.
        return self.create_app(echo_request_id=False)

    def create_app(self, *, echo_request_id: bool = True) -> FastAPI:
        """Returns the HTTP application over this replica's backend."""
        return create_app(
            self.backend,
            self.keys,
            limiter=self.limiter,
            per_minute=self.args.requests_per_minute,
            metrics=self.metrics,
            deadline_s=self.args.deadline_s,
            echo_request_id=echo_request_id,
        )

    def load(self, bundle: Path) -> PredictorProtocol:
        """Returns the predictor of a bundle folder; raises BundleError for a damaged bundle."""
        from clv.forecast.predictor import Predictor

        return Predictor(bundle, device=self.args.device)

    def _start(self) -> None:
        # Imported here, because building the application, as `serve deploy` does, needs no torch.
        import torch

        torch.set_num_threads(self.args.cpu_threads)
        pa.set_cpu_count(self.args.cpu_threads)
        bundle = self.args.bundle or Registry(self.args.registry or Path()).production()
        self.backend.install(self.load(bundle))

    def check_health(self) -> None:
        """Serve calls this and replaces the replica when it raises: without a bundle, or with a stuck prediction.

        A store that is down does not raise: another replica would not reach it either.
        """
        self.backend.check_health(2 * self.args.deadline_s)


class MetricsExporter:
    """Copies the metrics of a replica into Ray's, which each node exports: an HTTP call to /metrics reaches only one
    replica, chosen by the proxy. Samples of counters and histograms become gauges of the same names.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._registry = metrics.registry
        self._gauges: dict[str, Any] = {}
        self._set: set[tuple[str, tuple[tuple[str, str], ...]]] = set()

    async def run(self) -> None:
        """Exports until it is cancelled."""
        while True:
            self.export()
            await asyncio.sleep(EXPORT_S)

    def export(self) -> None:
        """Exports all samples once; samples that no longer exist become 0."""
        gone, self._set = self._set, set()
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                if sample.name not in self._gauges:
                    tags = tuple(sample.labels)
                    self._gauges[sample.name] = serve_metrics.Gauge(sample.name, family.documentation, tag_keys=tags)
                self._gauges[sample.name].set(sample.value, tags=dict(sample.labels))
                self._set.add((sample.name, tuple(sorted(sample.labels.items()))))
        for name, labels in gone - self._set:
            self._gauges[name].set(0, tags=dict(labels))


def log_with_serve() -> None:
    """Sends the log of `clv` to the handlers of Serve's log, without their buffer: the line of an erasure must not be
    lost with its replica."""
    theirs, ours = logging.getLogger("ray.serve"), logging.getLogger("clv")
    ours.handlers, ours.propagate = [], False
    ours.setLevel(theirs.level or logging.INFO)
    for handler in theirs.handlers:
        at_once = handler
        if isinstance(handler, MemoryHandler):
            at_once = MemoryHandler(1, target=handler.target)
            at_once.filters = handler.filters
        ours.addHandler(at_once)


async def http_host() -> str | None:
    """Returns the address on which Serve's proxies listen, from the controller; None when the controller has none.

    Serve has no public function for it, and the arguments of this process may differ from the running service.
    """
    try:
        from ray.serve.context import _get_global_client

        return (await _get_global_client()._controller.get_http_config.remote()).host
    except Exception:
        LOG.exception("the address on which Serve listens is unknown")
        return None


ClvService = serve.deployment(name="clv")(serve.ingress()(Replica))
