"""serve_configs/haproxy.sh with the real HAProxy, on configurations that Serve's own template writes."""

import http.client
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.serve_cluster import free_ports

SCRIPT = Path(__file__).resolve().parent.parent / "serve_configs/haproxy.sh"
ENVIRONMENT = {name: value for name, value in os.environ.items() if "HAPROXY" not in name} | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the script asks `python` for the binary
}


class Echo(BaseHTTPRequestHandler):
    """Answers every GET with the request id that it received."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps(self.headers.get("X-Request-ID")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Writes no access log."""


@dataclass(frozen=True)
class Proxy:
    config: Path
    port: int
    stats_port: int
    admin: Path

    def arguments(self, *more: str) -> list[str]:
        return [str(SCRIPT), "-db", *more, "-f", str(self.config)]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)


Start = Callable[..., Proxy]


@pytest.fixture(scope="module")
def service() -> Iterator[int]:
    """The port of a replica."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def configure(tmp_path_factory: pytest.TempPathFactory, service: int) -> Start:
    """Writes the configuration of Serve, with an application at each of `prefixes`."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    def write(*prefixes: str) -> Proxy:
        folder = tmp_path_factory.mktemp("haproxy")
        port, stats, metrics = free_ports(3)
        proxy = Proxy(folder / "haproxy.cfg", port, stats, folder / "admin.sock")
        config = HAProxyConfig(
            socket_path=str(proxy.admin),
            server_state_base=str(folder),
            server_state_file=str(folder / "server-state"),
            metrics_socket_path=str(folder / "metrics.sock"),
            stats_port=stats,
            metrics_port=metrics,
            has_received_routes=True,
            is_head=True,
            http_options=HTTPOptions(host="0.0.0.0", port=port, keep_alive_timeout_s=30),
        )
        applications = {
            f"clv{i}": BackendConfig(f"clv{i}", prefix, servers=[ServerConfig("replica", "127.0.0.1", service)])
            for i, prefix in enumerate(prefixes)
        }
        HAProxyApi(config, applications, str(proxy.config))._generate_config_file_internal()
        return proxy

    return write


@pytest.fixture
def start(configure: Start) -> Iterator[Start]:
    """Starts HAProxy by the script, with `environment` and a limit of open `files`, and waits until it answers."""
    with ExitStack() as stack:

        def run(*prefixes: str, files: int | None = None, **environment: str) -> Proxy:
            proxy = configure(*prefixes)
            log = proxy.config.with_suffix(".log")
            process = subprocess.Popen(
                proxy.arguments(),
                env=ENVIRONMENT | environment,
                stderr=stack.enter_context(log.open("w")),
                preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)) if files else None,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            until = time.monotonic() + 20
            with socket.socket(socket.AF_UNIX) as admin:
                while admin.connect_ex(str(proxy.admin)):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < until, log.read_text()
                    time.sleep(0.02)
            return proxy

        yield run


def answer(connection: http.client.HTTPConnection, path: str = "/", **headers: str | bytes) -> tuple[int, str]:
    """Status and body of a GET that leaves the connection open."""
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.read().decode()


def admitted(proxy: Proxy) -> bool:
    """Whether HAProxy serves a new connection."""
    connection = proxy.connect()
    try:
        return answer(connection)[0] == 200
    except ConnectionError:
        return False
    finally:
        connection.close()


def check(proxy: Proxy, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with HAProxy's -c, which reads the configuration and starts nothing."""
    return subprocess.run(
        proxy.arguments("-c"), env=ENVIRONMENT | environment, capture_output=True, text=True, check=False
    )


def section(config: Path, first: str) -> list[str]:
    """The lines of a section of a configuration, without indentation."""
    lines = config.read_text(encoding="utf-8").splitlines()
    rest = lines[lines.index(first) + 1 :]
    end = next((i for i, line in enumerate(rest) if line and not line[0].isspace()), len(rest))
    return [line.strip() for line in rest[:end]]


@pytest.mark.parametrize(
    ("prefixes", "environment", "timeouts", "limit"),
    [
        ((), {}, {"client": "60s", "server": "60s", "http-request": "10s"}, "500"),
        (
            ("/shop", "/other"),
            {"RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "70", "CLV_HAPROXY_HEAD_S": "7", "CLV_HAPROXY_PER_ADDRESS": "0"},
            {"client": "70s", "server": "60s", "http-request": "7s"},
            None,
        ),
    ],
)
def test_haproxy_accepts_the_edited_configuration_with_the_limits_of_the_environment(
    configure: Start, prefixes: tuple[str], environment: dict[str, str], timeouts: dict[str, str], limit: str | None
) -> None:
    proxy = configure(*prefixes)
    checked = check(proxy, **environment)
    assert checked.returncode == 0, checked.stderr
    written = dict(line.split()[1:] for line in section(proxy.config, "defaults") if line.startswith("timeout "))
    assert {name: written[name] for name in timeouts} == timeouts
    limits = re.findall(r"sc0_conn_cur gt (\d+)", "\n".join(section(proxy.config, "frontend http_frontend")))
    assert limits == [limit] * (limit is not None)


def test_a_limit_that_is_no_number_prevents_the_start(configure: Start) -> None:
    checked = check(configure("/"), CLV_HAPROXY_PER_ADDRESS="many")
    assert checked.returncode != 0
    assert "many" in checked.stderr


def test_a_head_that_arrives_byte_by_byte_is_cut_off_and_others_are_served_meanwhile(start: Start) -> None:
    proxy = start("/", CLV_HAPROXY_HEAD_S="1")
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=0.2) as slow:
        received = None
        slow.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        while received is None and time.monotonic() < began + 5:
            with suppress(TimeoutError):
                received = slow.recv(4096)
            if received is None:
                slow.sendall(b"a")
                assert admitted(proxy)
    assert received is not None, "the connection is still open"
    assert b" 408 " in received.splitlines()[0]
    assert time.monotonic() - began > 0.8


def test_an_address_with_too_many_connections_is_rejected_and_its_earlier_ones_are_served(start: Start) -> None:
    proxy = start("/", CLV_HAPROXY_PER_ADDRESS="3")
    held = [proxy.connect() for _ in range(3)]
    for _ in range(2):
        assert [answer(connection)[0] for connection in held] == [200] * 3
        assert not admitted(proxy)
    held.pop().close()
    until = time.monotonic() + 5
    while not admitted(proxy):
        assert time.monotonic() < until, "a closed connection still counts"
    for connection in held:
        connection.close()


def test_haproxy_starts_with_fewer_connections_where_few_files_may_be_open(start: Start) -> None:
    """`maxconn 20000` needs 50,037 files: HAProxy would refuse to start."""
    assert admitted(start("/", files=512))


def test_callers_receive_503_until_serve_knows_an_application(start: Start) -> None:
    connection = start().connect()
    connection.request("DELETE", "/v1/customers/1")
    response = connection.getresponse()
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert response.headers["Content-Type"] == "application/problem+json"
    assert json.loads(response.read())["status"] == 503
    connection.close()


def test_an_unknown_path_beside_an_application_remains_404(start: Start) -> None:
    connection = start("/shop").connect()
    assert answer(connection, "/shop/v1")[0] == 200
    assert answer(connection, "/elsewhere")[0] == 404
    connection.close()


def test_the_statistics_page_is_readable_on_the_node_only(start: Start) -> None:
    proxy = start("/")
    connection = http.client.HTTPConnection("127.0.0.1", proxy.stats_port, timeout=10)
    assert answer(connection, "/stats")[0] == 200
    connection.close()
    # Another address of the same machine, at which a socket bound to all interfaces would answer.
    with pytest.raises(ConnectionRefusedError, match="refused"):
        socket.create_connection(("127.0.0.2", proxy.stats_port), timeout=10)


def test_a_request_id_that_is_not_ascii_is_dropped(start: Start) -> None:
    connection = start("/").connect()
    assert answer(connection, X_Request_ID="order-17 b") == (200, '"order-17 b"')
    assert answer(connection, X_Request_ID=b"order-\xff") == (200, "null")
    connection.close()
