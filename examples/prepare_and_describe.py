"""Turns a CSV file into histories with the jobs: describe, edit the draft, try the first rows, prepare.

`python examples/prepare_and_describe.py [--folder FOLDER]`
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from clv.data.dataset import PreparedDataset
from clv.simulate.small import simulate


def main() -> None:
    """Writes orders.csv, shop.yaml and histories/ into the folder, and prints what every job logs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="an empty folder; by default a temporary one")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp())

    log = simulate(200, "2023-01-01", "2024-07-01", seed=7).events.to_pandas()
    orders = log[log["event_type"] == "purchase"]
    orders = orders[["customer_id", "event_time", "order_id", "item_id", "quantity", "amount"]]
    orders.to_csv(folder / "orders.csv", index=False)

    job("describe", "orders.csv", "--out", "shop.yaml", "--timezone", "Europe/Berlin", folder=folder)
    # The draft marks what a file cannot tell; here only the currency.
    draft = (folder / "shop.yaml").read_text(encoding="utf-8")
    lines = ["currency: EUR" if line.startswith("currency:") else line for line in draft.splitlines()]
    (folder / "shop.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    job("prepare", "--dataset", "shop.yaml", "--check", folder=folder)
    job("prepare", "--dataset", "shop.yaml", "--out", "histories", folder=folder)

    prepared = PreparedDataset.open(folder / "histories")
    print(f"{prepared.manifest['num_customers']} customers in {len(prepared.shards)} shards under {folder}/histories")


def job(verb: str, *arguments: str, folder: Path) -> None:
    """Runs a job in the folder; raises CalledProcessError where it fails."""
    print(f"\n$ python -m ray_jobs.{verb} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", f"ray_jobs.{verb}", *arguments], cwd=folder, check=True)


if __name__ == "__main__":
    main()
