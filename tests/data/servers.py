"""Throw-away servers on loopback for the tests of sources: PostgreSQL of the system, an S3 server of a pip package."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

S3 = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port() -> int:
    with socket.socket() as smoke_test:
        smoke_test.bind(("127.0.0.1", 0))
        return int(smoke_test.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 server in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                httpx.get(endpoint, trust_env=False)
                break
            except httpx.TransportError:
                assert server.poll() is None, "the S3 server does not start: pip install 'moto[s3]' flask flask-cors"
                time.sleep(0.1)
        yield endpoint
    finally:
        server.terminate()
        server.wait()


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """URL of a new PostgreSQL cluster; it refuses to run as root, so then it runs as the user of its package."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "PostgreSQL is not installed: apt-get install postgresql"
        )
    folder.mkdir(parents=True)
    as_user: dict[str, int] = {}
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        as_user = {"user": user.pw_uid, "group": user.pw_gid}
        os.chown(folder, user.pw_uid, user.pw_gid)
    port = free_port()
    subprocess.run(
        [initdb, "-D", str(folder / "data"), "-U", "shop", "--auth", "trust", "-N"],
        check=True, capture_output=True, cwd=folder, **as_user,
    )  # fmt: skip
    options = ["-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-F"]
    server = subprocess.Popen(
        [str(Path(initdb).with_name("postgres")), *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **as_user,
    )  # fmt: skip
    try:
        for _ in range(300):
            with socket.socket() as smoke_test:
                if smoke_test.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"postgresql://shop@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait()
