"""The notebook of the documentation runs as it stands."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/quickstart.ipynb"


def test_the_quickstart_runs_and_its_forecast_ranks_the_simulated_customers() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    text = "".join(str(out.get("text", "")) for cell in book.cells for out in cell.get("outputs", []))
    found = re.search(r"rank correlation ([\d.]+), total ([\d.]+)", text)
    assert found is not None
    assert float(found[1]) > 0.6
    assert 0.5 < float(found[2]) < 2.0
