"""What Ray Serve costs: the service in five topologies under the same load, against bare uvicorn in one process.

    python -m benchmarks.serve_load --out benchmarks/serve_load

Same predictor (`tiny`), one scoring thread, same batcher, one replica each, loopback, rounds interleaved, medians of
the rounds. Open loop: requests leave at random instants of a fixed rate whether or not earlier ones are answered, up
to `--outstanding`; latency counts from the planned instant. `saturated` offers twice what bare uvicorn can do, with 256
customers a request and with one; `calm` offers a fixed rate of single customers. Then replicas scale 1 -> 3 -> 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import tyro

from benchmarks.output import reserve
from benchmarks.serve_cluster import Cluster, cluster, cpu_seconds, free_ports
from benchmarks.serve_shop import make_shop


@dataclass(frozen=True, kw_only=True)
class Options:
    rounds: int = 3
    seconds: float = 8.0
    """Of each measurement."""
    calm_per_s: float = 10.0
    """Single customers per second offered where latency is measured."""
    outstanding: int = 16
    customers: int = 2_000
    """Size of the shop."""
    scale: bool = True
    """Also let replicas scale under load."""
    out: Path | None = None
    """Folder for serve_load.json and serve_load.md."""


RESULT = "serve_load.json"
BARE = "bare uvicorn"
TOPOLOGIES = {
    "scorer in ingress": (False, ""),
    "hop": (False, "/hop"),
    "scorer in ingress, HAProxy": (True, ""),
    "hop, HAProxy": (True, "/hop"),
}


@dataclass
class Load:
    """The result of one measurement."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    not_sent: int = 0

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


async def offer(url: str, ids: list[str], per_request: int, rate: float, seconds: float, outstanding: int) -> Load:
    """Open loop at `rate` requests per second for `seconds`, and until all of them are answered."""
    rng, load, running = random.Random(7), Load(), set[asyncio.Task[None]]()
    limits = httpx.Limits(max_connections=outstanding, max_keepalive_connections=outstanding)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        began = time.perf_counter()

        async def ask(planned: float) -> None:
            body = {"customers": [{"customer_id": one} for one in rng.sample(ids, per_request)]}
            try:
                status = str((await client.post("/v1/predict", json=body)).status_code)
            except httpx.TransportError as error:
                status = type(error).__name__
            load.statuses[status] += 1
            if status == "200":
                load.latencies.append(time.perf_counter() - planned)

        planned = began
        while (planned := planned + rng.expovariate(rate)) < began + seconds:
            await asyncio.sleep(planned - time.perf_counter())
            running = {task for task in running if not task.done()}
            if len(running) >= outstanding:
                load.not_sent += 1
            else:
                running.add(asyncio.create_task(ask(planned)))
        await asyncio.gather(*running)
        load.seconds = max(seconds, time.perf_counter() - began)
    return load


def application(shop: Path, name: str, prefix: str, builder: str, **deployments: dict[str, Any]) -> dict[str, Any]:
    common = {"max_ongoing_requests": 64, "max_queued_requests": 256, "ray_actor_options": {"num_cpus": 0.5}}
    return {
        "name": name,
        "route_prefix": prefix,
        "import_path": builder,
        "args": {"bundle": str(shop / "bundle"), "store": str(shop / "store"), "cpu_threads": 1},
        "deployments": [{"name": key, **common, **options} for key, options in deployments.items()],
    }


def deploy_both(on: Cluster, shop: Path) -> None:
    one = {"num_replicas": 1}
    on.deploy(
        application(shop, "clv", "/", "clv.serve.app:build_app", clv=one),
        application(shop, "hop", "/hop", "benchmarks.serve_topologies:build_hop", clv=one, model=one),
    )
    on.wait(1)
    on.wait(1, application="hop")


@contextmanager
def bare(shop: Path) -> Iterator[tuple[str, int]]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "benchmarks.serve_topologies", str(shop / "bundle"), str(shop / "store")]
    # A session of its own, as the clusters have: Linux shares a busy machine by sessions.
    process = subprocess.Popen(
        [*command, str(port), "1"], env=os.environ | {"RAY_AUTH_MODE": "disabled"}, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until and process.poll() is None:
            try:
                httpx.get(f"{url}/readyz").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            raise RuntimeError("bare uvicorn does not start")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(20)


def seconds_of(url: str, ids: list[str], per_request: int) -> float:
    """Median seconds of five requests, one after the other."""
    took = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(5):
            began = time.perf_counter()
            body = {"customers": [{"customer_id": one} for one in random.sample(ids, per_request)]}
            client.post("/v1/predict", json=body).raise_for_status()
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def measure(options: Options, shop: Path, ids: list[str], servers: dict[str, tuple[str, int]]) -> list[dict[str, Any]]:
    """One row per round, topology and kind of load."""
    bare_url = servers[BARE][0]
    kinds = {
        "saturated, 256 customers": (256, 2 / seconds_of(bare_url, ids, 256)),
        "saturated, 1 customer": (1, 2 / seconds_of(bare_url, ids, 1)),
        "calm, 1 customer": (1, options.calm_per_s),
    }
    idle = {}
    for pid in {pid for _, pid in servers.values()}:
        before = cpu_seconds(pid)
        time.sleep(3)
        idle[pid] = (cpu_seconds(pid) - before) / 3
    rows = []
    for number in range(options.rounds):
        for name, (url, pid) in servers.items():
            for kind, (per_request, rate) in kinds.items():
                before, own, start = cpu_seconds(pid), time.process_time(), time.perf_counter()
                load = asyncio.run(offer(url, ids, per_request, rate, options.seconds, options.outstanding))
                cpu, wall = cpu_seconds(pid) - before, time.perf_counter() - start
                answered = len(load.latencies)
                rows.append(
                    {
                        "round": number,
                        "topology": name,
                        "load": kind,
                        "offered_per_s": round(rate, 2),
                        "answered_per_s": answered / load.seconds,
                        "p50_ms": 1000 * load.percentile(0.50),
                        "p95_ms": 1000 * load.percentile(0.95),
                        "p99_ms": 1000 * load.percentile(0.99),
                        "server_cpu_s": cpu,
                        "idle_cpu_per_s": idle[pid],
                        # Refused requests cost next to nothing: only those that were answered count.
                        "cpu_ms_per_customer": 1000
                        * (cpu - idle[pid] * wall)
                        / max(len(load.latencies) * per_request, 1),
                        "client_cpu_s": time.process_time() - own,
                        "statuses": dict(load.statuses),
                        "not_sent": load.not_sent,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """kind of load -> topology -> figure -> median over the rounds."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    figures = ("answered_per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_ms_per_customer")
    for kind in dict.fromkeys(row["load"] for row in rows):
        for name in dict.fromkeys(row["topology"] for row in rows):
            some = [row for row in rows if (row["load"], row["topology"]) == (kind, name)]
            found.setdefault(kind, {})[name] = {f: statistics.median(row[f] for row in some) for f in figures}
    return found


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The medians as Markdown, with the ratio to bare uvicorn and the p50 it adds."""
    lines = [
        "| load | topology | requests/s | of bare | p50 ms | p95 ms | p99 ms | added p50 | CPU-ms/customer | of bare |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, by_name in found.items():
        base = by_name[BARE]
        for name, m in by_name.items():
            lines.append(
                f"| {kind} | {name} | {m['answered_per_s']:.2f} | {share(m['answered_per_s'], base['answered_per_s'])} "
                f"| {m['p50_ms']:.0f} | {m['p95_ms']:.0f} | {m['p99_ms']:.0f} | {m['p50_ms'] - base['p50_ms']:+.0f} "
                f"| {m['cpu_ms_per_customer']:.2f} | {share(m['cpu_ms_per_customer'], base['cpu_ms_per_customer'])} |"
            )
    return "\n".join(lines)


def share(one: float, other: float) -> str:
    return f"{one / other:.2f}" if other else "-"


def scale(on: Cluster, shop: Path, ids: list[str], options: Options) -> dict[str, Any]:
    """Replicas 1 -> 3 -> 1 while requests go on; what the callers saw, and when how many replicas ran."""
    autoscaling = {
        "min_replicas": 1, "max_replicas": 3, "initial_replicas": 1, "target_ongoing_requests": 2,
        "upscale_delay_s": 1, "downscale_delay_s": 4, "metrics_interval_s": 0.5, "look_back_period_s": 2,
    }  # fmt: skip
    on.deploy(application(shop, "clv", "/", "clv.serve.app:build_app", clv={"autoscaling_config": autoscaling}))
    on.wait(1)
    began, seen = time.perf_counter(), [(0.0, 1)]

    async def watch(until: Callable[[int], bool], load: asyncio.Task[Load]) -> None:
        while not load.done():
            count = len(await asyncio.to_thread(on.replicas))
            if count != seen[-1][1]:
                seen.append((round(time.perf_counter() - began, 1), count))
            if until(count):
                return
            await asyncio.sleep(0.5)

    async def go() -> tuple[Load, Load]:
        busy = asyncio.create_task(offer(on.url, ids, 32, 20.0, 75.0, 12))
        await watch(lambda count: count == 3, busy)
        high = await busy
        calm = asyncio.create_task(offer(on.url, ids, 1, 1.0, 75.0, 12))
        await watch(lambda count: count == 1, calm)
        return high, await calm

    high, calm = asyncio.run(go())
    return {
        "replicas_over_time": seen,
        "under_load": dict(high.statuses),
        "calm": dict(calm.statuses),
        "p99_ms_under_load": 1000 * high.percentile(0.99),
    }


def pin() -> tuple[set[int], set[int]]:
    """Cores of the servers and of the client: apart where there are four or more."""
    cores = sorted(os.sched_getaffinity(0))
    return (set(cores[:-1]), {cores[-1]}) if len(cores) >= 4 else (set(cores), set(cores))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    reserve(options.out and options.out / RESULT)
    servers_on, client_on = pin()
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name:
        shop = Path(name)
        ids = make_shop(shop, options.customers)
        os.sched_setaffinity(0, servers_on)  # what is started from here inherits it
        with bare(shop) as plain, cluster(haproxy=False) as proxy, cluster(haproxy=True) as haproxy:
            os.sched_setaffinity(0, client_on)
            for one in (proxy, haproxy):
                deploy_both(one, shop)
            on = {False: proxy, True: haproxy}
            servers = {BARE: plain} | {
                name: (on[with_haproxy].url + prefix, on[with_haproxy].pid)
                for name, (with_haproxy, prefix) in TOPOLOGIES.items()
            }
            rows = measure(options, shop, ids, servers)
            scaled = scale(haproxy, shop, ids, options) if options.scale else None
    found = medians(rows)
    print(table(found))
    print(json.dumps(scaled))
    if options.out is not None:
        result = {"cores": len(servers_on | client_on), "pinned_apart": not servers_on & client_on, "scale": scaled,
                  "medians": found, "rows": rows}  # fmt: skip
        (options.out / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (options.out / "serve_load.md").write_text(table(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
