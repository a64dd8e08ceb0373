"""The architecture page lists every module with the first sentence of its docstring."""

import importlib.util
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("module_index", REPO / "docs" / "module_index.py")
assert SPEC is not None
assert SPEC.loader is not None
index = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(index)


def test_the_architecture_page_lists_the_modules_as_they_are() -> None:
    page = index.PAGE.read_text(encoding="utf-8")
    assert index.with_index(page) == page, "run `make format`, which writes the list of modules"


def test_every_module_has_a_sentence() -> None:
    rows = [line for line in index.module_index().splitlines() if line.startswith("| `")]
    modules = [path for path in [*REPO.glob("clv/**/*.py"), *REPO.glob("ray_jobs/*.py")] if path.stem != "__init__"]
    assert len(rows) == len(modules)
    assert not [row for row in rows if row.endswith("|  |")]
