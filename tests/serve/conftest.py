"""A small predictor of the served kind: deterministic arithmetic on the histories it is given, no model files."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import redis
import uvicorn

from clv.data.clock import DAY_US, Clock, to_us
from clv.data.events import EVENTS, US
from clv.data.histories import Histories, build
from clv.serve.http.routes import create_app
from clv.serve.rollout.follower import Follower
from clv.serve.scoring.backend import LiveBackend
from clv.serve.scoring.batching import Batching
from clv.serve.store.sqlite import SqliteStore

CUT = datetime(2011, 6, 1, tzinfo=UTC)
NUMBERS = [
    *("p_purchase", "churn_probability", "orders_mean", "aov", "value_mean", "value_median", "value_p10", "value_p90"),
    *("clv_mean", "btyd_value_mean"),
]


class SmallPredictor:
    """Value = mean amount x orders x horizon / 365; counts its calls and the customers of each."""

    def __init__(self, version: str = "v1", cut: datetime = CUT, timezone: str = "Europe/London") -> None:
        self.version, self.cut, self.data_through = version, cut, cut
        self.currency, self.horizons, self.clock = "GBP", (30, 90), Clock(timezone)
        self.max_tokens = 512
        self.calls: list[int] = []
        self.before: Callable[[pa.Table], object] = lambda histories: None

    def check_origin(self, as_of: int, data_through: int | None = None) -> int:
        if as_of < to_us(self.cut):
            raise ValueError("origin lies before the bundle's cut")
        if as_of > max(to_us(self.data_through), data_through or 0) + 90 * DAY_US:
            raise ValueError("origin lies more than 90 days past the data")
        return as_of

    def predict(self, histories: pa.Table, as_of: int, horizons: Sequence[int] | None = None) -> pa.Table:
        self.calls.append(len(histories))
        self.before(histories)
        h = Histories.from_table(histories)
        used = (h.time < as_of) & (h.known_at < as_of)
        owner = np.repeat(np.arange(len(h)), np.diff(h.offsets))[used]
        orders = np.bincount(owner, minlength=len(h))
        spend = np.bincount(owner, np.nan_to_num(h.amount[used]), minlength=len(h))
        rows = np.flatnonzero(orders)
        tables = []
        for days in horizons or self.horizons:
            rate = orders[rows] * days / 365
            value = np.where(spend[rows] == 0, np.nan, spend[rows] * days / 365)
            columns = dict.fromkeys(NUMBERS, value)
            columns |= {"p_purchase": 1 - np.exp(-rate), "churn_probability": np.exp(-rate), "orders_mean": rate}
            tables.append(
                pa.table(
                    {
                        "customer_id": h.customer_id.take(pa.array(rows)),
                        "origin": pa.array(np.full(len(rows), as_of)).cast(US),
                        "horizon_days": pa.array(np.full(len(rows), days), pa.int32()),
                        **columns,
                        "extrapolated": np.full(len(rows), days > 90),
                        "value_rank": np.arange(len(rows)),
                        "value_decile": pa.array(np.ones(len(rows)), pa.int32()),
                    }
                )
            )
        return pa.concat_tables(tables)

    def portfolio(self, histories: pa.Table, as_of: int, horizons: Sequence[int] | None = None) -> pa.Table:
        scores = self.predict(histories, as_of, horizons)
        wanted = sorted(horizons or self.horizons)
        rows = [scores.filter(pc.equal(scores["horizon_days"], days)) for days in wanted]
        totals = [float(np.nansum(one["value_mean"].to_numpy())) for one in rows]
        names = ("value_mean", "value_p10", "value_median", "value_p90")
        return pa.table(
            {"horizon_days": wanted, "customers": [len(one) for one in rows], **dict.fromkeys(names, totals)}
        )


def events(*rows: tuple[str, str, float | None]) -> pa.Table:
    """Purchases (customer, ISO time in UTC, amount)."""
    time = pa.array([datetime.fromisoformat(text).replace(tzinfo=UTC) for _, text, _ in rows], US)
    columns = {name: pa.nulls(len(rows), EVENTS.field(name).type) for name in EVENTS.names}
    columns |= {
        "customer_id": pa.array([name for name, _, _ in rows]),
        "event_time": time,
        "known_at": time,
        "event_type": pa.array(["purchase"] * len(rows)),
        "amount": pa.array([amount for _, _, amount in rows], pa.float64()),
    }
    return pa.table(columns, schema=EVENTS)


@pytest.fixture
def sample_events() -> pa.Table:
    return events(*STORED)


STORED = [("A", "2011-05-01T10:00", 20.0), ("A", "2011-06-10T10:00", 30.0), ("B", "2011-06-11T09:00", None)]


@dataclasses.dataclass
class RedisServer:
    """A real redis-server on a free port of loopback that writes every command to its append-only file."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = f"--port {self.port} --bind 127.0.0.1 --dir {self.folder} --appendonly yes --save"
        command = ["redis-server", *options.split(), "", "--daemonize", "no", "--logfile", "redis.log"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.wait()

    def wait(self) -> None:
        client, until = redis.Redis.from_url(self.url), time.monotonic() + 20
        while time.monotonic() < until:
            try:
                client.ping()
                client.close()
                return
            except redis.exceptions.ConnectionError:
                time.sleep(0.02)
        pytest.fail(f"redis-server did not start: {(self.folder / 'redis.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        message = "no redis-server: apt-get install redis-server"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = RedisServer(tmp_path_factory.mktemp("redis"), port)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of an empty database of the session's server."""
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    client.close()
    return redis_server.url


@pytest.fixture
def make_predictor() -> type[SmallPredictor]:
    return SmallPredictor


@pytest.fixture
def predictor() -> SmallPredictor:
    return SmallPredictor()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Customers A (50.00 in two orders) and B (one order without a price)."""
    store = SqliteStore(tmp_path / "store", create=True)
    store.put_histories(build(events(*STORED), Clock("Europe/London")))
    yield store
    store.close()


@pytest.fixture
def backend(predictor: SmallPredictor, store: SqliteStore) -> LiveBackend:
    backend = LiveBackend(store, Batching(wait_s=0.001))
    backend.install(predictor)
    predictor.calls.clear()
    return backend


@pytest.fixture
def connect() -> Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]:
    """An HTTP client of an application in this process, as a context."""

    def open_client(app: object, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    return open_client


@dataclasses.dataclass
class Replicas:
    """Several backends behind one address that takes them in turn; each with its metrics, all with one store."""

    url: str
    backends: list[LiveBackend]
    apps: list[Any]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.apps.append(app := self.apps.pop(0))
        await app(scope, receive, send)


@contextmanager
def replicas(
    backends: Sequence[LiveBackend],
    followers: Sequence[Follower] = (),
    make_app: Callable[[LiveBackend], Any] = lambda backend: create_app(backend, metrics=backend.metrics),
) -> Iterator[Replicas]:
    """Serves them with uvicorn in a thread, in whose loop the followers run; one more request goes to the next."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        made = Replicas(url, list(backends), [make_app(backend) for backend in backends])
        server = uvicorn.Server(uvicorn.Config(made, log_level="error", lifespan="off"))

        async def run() -> None:
            following = [asyncio.create_task(follower.run()) for follower in followers]
            await server.serve(sockets=[listener])
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield made
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture
def serve_replicas() -> Callable[..., AbstractContextManager[Replicas]]:
    return replicas


@pytest.fixture(scope="session")
def shop_histories() -> pa.Table:
    """300 customers of a London shop from 2010-01-01 to 2011-06-04, some with a town."""
    rng = np.random.default_rng(7)
    clock = Clock("Europe/London")
    first, gap = rng.integers(0, 400, 300), rng.gamma(2.0, 25.0, 300)
    days = first[:, None] + np.cumsum(np.c_[np.zeros(300), rng.exponential(gap[:, None], (300, 60))], axis=1)
    customer, order = np.nonzero(days < 519)
    num = len(customer)
    time = pa.array(clock.parse("2010-01-01") + (days[customer, order] * DAY_US).astype(np.int64)).cast(US)
    columns = {name: pa.nulls(num, EVENTS.field(name).type) for name in EVENTS.names}
    columns |= {
        "customer_id": pa.array([f"{i:05d}" for i in customer]),
        "event_time": time,
        "known_at": time,
        "event_type": pa.array(["purchase"] * num),
        "item_id": pa.array([f"i{i}" for i in rng.integers(30, size=num)]),
        "amount": pa.array(rng.lognormal(3, 0.5, num)),
    }
    towns = pa.table({"customer_id": [f"{i:05d}" for i in range(300)], "attr_town": ["Leeds", "York", None] * 100})
    return build(pa.table(columns, schema=EVENTS), clock, towns)


@pytest.fixture(scope="session")
def make_shop_bundle(shop_histories: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a real bundle, cut 2011-06-12: fitted BTYD model and feature space, network weights drawn by a seed."""
    from clv import bundle as bundles
    from clv.forecast.adjustment import Adjustment
    from clv.models.inputs.feature_space import Items
    from clv.train.config import TrainConfig
    from clv.train.fitting import Dataset, prepare

    h = Histories.from_table(shop_histories)
    clock = Clock("Europe/London")
    end = clock.parse("2011-06-12")
    config = dataclasses.replace(TrainConfig(), num_origins=4)
    setup = prepare(Dataset(h, clock, "gross", (30, 90), Items.empty(), end), end, config, 30)
    vocab, items = setup.assembler.space.to_arrays()
    facts = {"currency": "GBP", "timezone": "Europe/London", "horizons": [30, 90], "value": "gross"}

    def make(seed: int = 0) -> Path:
        model = setup.model(dataclasses.replace(config, seed=seed))
        noise = np.random.default_rng(seed)  # the heads begin at zero: seeds alone would all predict the same
        made = bundles.Bundle(
            config={
                "cut_us": end,
                "data_through_us": int(h.time.max()),
                "model": bundles.plain_json(config.model),
                "value_scale": setup.assembler.value_scale,
                "population_average": setup.assembler.population_average.tolist(),
                "dataset_facts": {**facts, "discount_rate_annual": 0.1},
            },
            vocab=vocab,
            btyd=setup.assembler.btyd.to_json(),
            calibration=Adjustment.identity(2).to_json(),
            metrics={},
            weights={
                name: tensor.numpy() + (seed > 0) * noise.normal(0, 0.02, tensor.shape).astype(np.float32)
                for name, tensor in model.state_dict().items()
            },
            items=items,
        )
        folder = tmp_path_factory.mktemp("bundle") / f"seed-{seed}"
        bundles.save(made, folder)
        return folder

    return make
