"""Starts the HTTP service of a small bundle in this process and asks it with the typed client, without Ray.

`python examples/serve_requests.py`
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import uvicorn

import clv
from clv.serve.client import Client
from clv.serve.http.routes import create_app
from clv.serve.scoring.backend import LiveBackend
from clv.simulate.small import simulate
from clv.train.config import TrainConfig

COLUMNS = ("customer_id", "event_time", "order_id", "quantity", "amount")


def main() -> None:
    """Prints the forecast of two customers, before and after one of them orders again."""
    log = simulate(150, "2023-01-01", "2024-07-01", seed=7).events.to_pandas()
    orders = log[log["event_type"] == "purchase"]
    config = TrainConfig(epochs=1, samples_per_epoch=128, num_origins=4)
    model = clv.fit(orders, {name: name for name in COLUMNS}, currency="EUR", config=config)
    customers = [request(orders, customer_id) for customer_id in ("C0000001", "C0000002")]

    with serving(model) as url, Client(url) as client:
        print(f"in service: bundle {client.model().model.version}")
        for result in client.predict(customers, horizons_days=[90]).results:
            print(f"{result.customer_id}: {result.scores[0].value_mean:.2f} EUR in 90 days")
        last = orders["event_time"].max().isoformat()
        customers[0]["events"].append({"event_time": last, "event_type": "purchase", "order_id": "new", "amount": 30.0})
        result = client.predict(customers[:1], horizons_days=[90]).results[0]
        print(f"{result.customer_id} after one more order: {result.scores[0].value_mean:.2f} EUR in 90 days")


def request(orders: pd.DataFrame, customer_id: str) -> dict[str, object]:
    """Returns a customer of a prediction request, with his or her orders."""
    theirs = orders[orders["customer_id"] == customer_id]
    events = [
        {
            "event_time": row.event_time.isoformat(),
            "event_type": "purchase",
            "order_id": row.order_id,
            "amount": row.amount,
        }
        for row in theirs.itertuples()
    ]
    return {"customer_id": customer_id, "events": events}


@contextmanager
def serving(model: clv.Model) -> Iterator[str]:
    """Yields the address of a server of the model on a free port of this machine, and stops it at the end."""
    backend = LiveBackend()
    backend.install(model.predictor)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_app(backend), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
