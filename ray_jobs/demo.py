"""Demo: the whole flow on The Complete Journey, a year of a real grocer, on this machine.

Runs prepare, embed, train, backtest, score, load_store and the service one after the other, as a user would. Writes
everything below --out and logs a summary with three answers of the service.

    python -m ray_jobs.demo --out out/demo
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.backtest import metric_tables
from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "ray_jobs/datasets/complete_journey.yaml"
EXPECTED_ROWS, EXPECTED_CUSTOMERS = 1_469_307, 2_469
ORIGIN, HORIZON_DAYS = "2017-10-04", 90
LOAD_DEADLINE_S = 240


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options of the demo."""

    out: Path = Path("out/demo")
    """Folder for all results."""
    port: int = 8000
    """Port of the service."""


def run(options: Options) -> None:
    """Raises RuntimeError when a step fails or reads other numbers than the dataset holds."""
    begun = time.monotonic()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    histories, bundle, store = out / "histories", out / "bundle", out / "store"
    took: dict[str, float] = {}

    def step(name: str, *arguments: str) -> str:
        start = time.monotonic()
        text = job(name, *arguments)
        took[name] = time.monotonic() - start
        return text

    accounting = step("prepare", "--dataset", str(SPEC), "--out", str(histories), "--overwrite")
    check(histories)
    step("embed", "--histories", str(histories))
    step("train", "--histories", str(histories), "--origin", ORIGIN, "--preset", "tiny", "--workers", "2",
         "--zero-stage", "1", "--out", str(bundle))  # fmt: skip
    step("backtest", "--histories", str(histories), "--origins", ORIGIN, "--horizon-days", str(HORIZON_DAYS),
         "--bundle", str(bundle), "--out", str(out / "backtest"))  # fmt: skip
    step("score", "--bundle", str(bundle), "--histories", str(histories), "--out", str(out / "scores"))
    step("load_store", "--histories", str(histories), "--store", str(store))
    start = time.monotonic()
    customers = best_customers(out / "scores", 3)
    with serving(bundle, store, options.port) as url:
        answers = ask(url, customers)
    took["serve"] = time.monotonic() - start

    LOG.info("\n" + "=" * 100)
    LOG.info(
        "\n".join(line for line in accounting.splitlines() if "rows read" in line or line.startswith("histories:"))
    )
    LOG.info("\n".join(comparison(out / "backtest")))
    LOG.info(f"\nthree answers of POST /v1/predict ({HORIZON_DAYS} days):")
    for result in answers["results"]:
        score = result["scores"][0]
        LOG.info(
            f"  customer {result['customer_id']}: {score['value_mean']:.2f} {answers['currency']} "
            f"({score['value_p10']:.2f} to {score['value_p90']:.2f}), P(purchase) {score['p_purchase']:.3f}, "
            f"lifetime {score['clv_mean']:.0f}"
        )
    LOG.info("\nseconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in took.items()))
    LOG.info(f"in all {time.monotonic() - begun:.0f} s")
    LOG.info(f"report:       {out / 'backtest/report.html'}")
    LOG.info(f"scores:       {out / 'scores/scores.csv'} and valuable_and_leaving.csv")
    LOG.info(f"keep serving: CLV_BUNDLE={bundle} CLV_STORE={store} make serve")


def job(name: str, *arguments: str) -> str:
    """Runs a job, passing its output on; returns it. RuntimeError if it fails."""
    LOG.info(f"\n--- python -m ray_jobs.{name} {' '.join(arguments)}")
    lines = []
    command = [sys.executable, "-m", f"ray_jobs.{name}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            LOG.info(line.rstrip())
    if process.returncode:
        raise RuntimeError(f"ray_jobs.{name} ended with code {process.returncode}; its messages are above")
    return "".join(lines)


def check(histories: Path) -> None:
    """Raises RuntimeError where the dataset is incomplete."""
    manifest = json.loads((histories / "manifest.json").read_text())
    found = manifest["row_accounting"]["events"]["read"], manifest["num_customers"]
    if found != (EXPECTED_ROWS, EXPECTED_CUSTOMERS):
        raise RuntimeError(f"read {found[0]:,} rows of {found[1]:,} customers, expected {EXPECTED_ROWS:,} of "
                           f"{EXPECTED_CUSTOMERS:,}")  # fmt: skip


def comparison(backtest: Path) -> list[str]:
    """The table of a back-test's folder: a title, the header, and a line for each model."""
    return metric_tables(json.loads((backtest / "metrics.json").read_text(encoding="utf-8")))


def best_customers(scores: Path, count: int) -> list[str]:
    """The customers of highest value."""
    import pyarrow.parquet as pq

    found: dict[int, str] = {}
    for path in sorted(scores.glob("part-*.parquet")):
        table = pq.read_table(path, filters=[("horizon_days", "==", HORIZON_DAYS), ("value_rank", "<=", count)])
        found |= dict(zip(table["value_rank"].to_pylist(), table["customer_id"].to_pylist(), strict=True))
    return [found[rank] for rank in sorted(found)]


@contextmanager
def serving(bundle: Path, store: Path, port: int) -> Iterator[str]:
    """A running service; stopped with everything it started at the end."""
    import yaml

    config = yaml.safe_load((ROOT / "serve_configs/local.yaml").read_text())
    config["http_options"]["port"] = port
    file = bundle.parent / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    environment = os.environ | {
        "CLV_BUNDLE": str(bundle),
        "CLV_STORE": str(store),
        "RAY_AUTH_MODE": "disabled",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_LOG_TO_STDERR": "1",
    }
    LOG.info(f"\n--- serve run serve_configs/local.yaml (port {port})")
    serve = Path(sys.executable).with_name("serve")
    log = (bundle.parent / "serve.log").open("w")
    process = subprocess.Popen(
        [str(serve), "run", str(file)], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def wait_until_ready(url: str, process: subprocess.Popen[Any]) -> None:
    import httpx

    deadline = time.monotonic() + LOAD_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"serve ended with code {process.returncode}; see serve.log under --out")
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the service was not ready within {LOAD_DEADLINE_S} s; see serve.log under --out")


def ask(url: str, customers: list[str]) -> dict[str, Any]:
    import httpx

    body = {"horizons_days": [HORIZON_DAYS], "customers": [{"customer_id": c} for c in customers]}
    answer = httpx.post(f"{url}/v1/predict", json=body, timeout=60)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    missing = [r["customer_id"] for r in found["results"] if r["status"] != "ok"]
    if missing:
        raise RuntimeError(f"the service does not know customers {re.sub('[^0-9A-Za-z, ]', '', str(missing))}")
    return found


def main() -> None:
    execute("demo", Options, run, __doc__)


if __name__ == "__main__":
    main()
