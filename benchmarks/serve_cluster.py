"""A Ray cluster of its own on loopback that takes Serve files: for the load benchmark and the fault tests."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

REPO = Path(__file__).resolve().parent.parent
START_S = 120


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass(frozen=True)
class Cluster:
    """A running head node: its processes, its dashboard (which takes Serve files), and Serve's address."""

    pid: int
    dashboard: str
    http_port: int
    metrics_port: int
    folder: Path
    token: str = field(repr=False)
    environment: dict[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def deploy(self, *applications: dict[str, Any]) -> None:
        """Sends a Serve file with these applications, as `serve deploy` does; does not wait."""
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.http_port, "request_timeout_s": 60},
            "logging_config": {"enable_access_log": False},
            "applications": list(applications),
        }
        self._call("PUT", json=config).raise_for_status()

    def status(self) -> dict[str, Any]:
        """What Serve says of itself: applications, deployments, replicas with their process ids."""
        answer: dict[str, Any] = self._call("GET").raise_for_status().json()
        return answer

    def replicas(self, application: str = "clv", deployment: str = "clv") -> dict[str, int]:
        """Process id by replica of those that run."""
        found = self.status()["applications"].get(application, {}).get("deployments", {}).get(deployment, {})
        return {one["replica_id"]: one["pid"] for one in found.get("replicas", []) if one["state"] == "RUNNING"}

    def wait(self, running: int | None = None, application: str = "clv", timeout_s: float = 180) -> None:
        """Until the application runs, with that many replicas; RuntimeError with Serve's message when it does not."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            found = self.status()["applications"].get(application, {})
            if found.get("status") == "RUNNING" and running in (None, len(self.replicas(application))):
                return
            if found.get("status") == "DEPLOY_FAILED":
                break
            time.sleep(0.25)
        raise RuntimeError(f"{application} does not run after {timeout_s:g} s: {found}")

    def cpu_seconds(self) -> float:
        """CPU seconds that the living processes of the cluster have used."""
        return cpu_seconds(self.pid)

    def _call(self, method: str, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.request(method, f"{self.dashboard}/api/serve/applications/", headers=headers, timeout=120, **body)


def cpu_seconds(root: int) -> float:
    """CPU seconds of a process and its living descendants."""
    tick, used, parents = os.sysconf("SC_CLK_TCK"), {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid], used[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / tick
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(used.get(pid, 0.0) for pid in family)


@contextmanager
def cluster(
    *, haproxy: bool, num_cpus: int = 6, environment: Mapping[str, str] | None = None, token: str | None = None
) -> Iterator[Cluster]:
    """One node with token authentication, gone afterwards with everything it started."""
    # Short: the sockets under it may have no path of more than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="clv", dir="/tmp"))
    token = token or secrets.token_hex(32)
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    gcs, board, agent, client, http, stats, prometheus, metrics = free_ports(8)
    first = 31_000 + secrets.randbelow(150) * 100
    bin_ = Path(sys.executable).parent
    env = os.environ | {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 99),
    }
    env.pop("RAY_ADDRESS", None)
    if haproxy:
        serve = folder / "haproxy"
        env |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(REPO / "serve_configs/haproxy.sh"),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(serve / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(serve / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(serve / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(serve),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(serve / "server-state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(prometheus),
        }
    env |= environment or {}
    command = [str(bin_ / "ray"), "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={board}",
               f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
               f"--metrics-export-port={metrics}", f"--temp-dir={folder}", f"--num-cpus={num_cpus}",
               f"--object-store-memory={256 * 1024**2}", "--disable-usage-stats"]  # fmt: skip
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        made = Cluster(head.pid, f"http://127.0.0.1:{board}", http, metrics, folder, token, env)
        _wait_for_dashboard(made, head, folder / "start.log")
        yield made
    finally:
        # By its own process group: `ray stop` would take everybody's. Graceful takes half a minute.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_dashboard(made: Cluster, head: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if head.poll() is not None:
            raise RuntimeError(log.read_text())
        try:
            made.status()
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise RuntimeError(f"no dashboard after {START_S} s:\n{log.read_text()}")
