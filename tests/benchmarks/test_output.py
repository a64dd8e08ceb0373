"""No benchmark loses its result for want of a folder: it creates the folder before it starts to work."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from benchmarks.output import reserve

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# The first long work of each benchmark that takes --out.
WORK = {
    "ablations": "benchmarks.ablations.histories",
    "adapters": "benchmarks.adapters.histories",
    "fingerprint": "benchmarks.fingerprint.fingerprint",
    "gpu": "torch.set_float32_matmul_precision",
    "mutations": "benchmarks.mutations.modules",
    "prepare": "benchmarks.prepare.write_log",
    "score": "benchmarks.score.prepare",
    "seasonal_factor": "benchmarks.seasonal_factor.forecast",
    "serve_load": "benchmarks.serve_load.make_shop",
    "text": "benchmarks.text.histories",
}


def test_the_list_of_benchmarks_with_an_output_is_complete() -> None:
    takes_out = re.compile(r'^    out: Path|"--out"', re.MULTILINE)
    sources = [path for path in BENCHMARKS.rglob("*.py") if takes_out.search(path.read_text(encoding="utf-8"))]
    assert sorted(path.stem for path in sources) == sorted(WORK)


@pytest.mark.parametrize("name", WORK)
def test_the_folder_of_the_output_is_there_before_the_work_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WorkStartsError(Exception):
        pass

    def work(*_: object, **__: object) -> None:
        raise WorkStartsError(name)

    benchmark, out = importlib.import_module(f"benchmarks.{name}"), tmp_path / "new" / "folder" / "result.json"
    # The environment that a benchmark sets must not outlive the test.
    for variable in ("CLV_DATA", "OMP_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(WORK[name], work)
    cache = ["--cache", str(tmp_path / "cache")] if name in ("ablations", "adapters", "text") else []
    monkeypatch.setattr(sys, "argv", [name, "--out", str(out), *cache])
    with pytest.raises(WorkStartsError, match=name):
        benchmark.main()
    assert out.parent.is_dir()


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"is a folder; give the path of a file, for example .*result\.json"):
        reserve(tmp_path)


def test_results_that_are_only_printed_need_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reserve(None)
    assert not list(tmp_path.iterdir())
