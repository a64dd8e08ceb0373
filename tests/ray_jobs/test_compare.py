"""Two runs beside each other: what was set differently, and what came of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from clv import bundle as bundles
from ray_jobs import compare


@pytest.fixture
def other(small_bundle: Path, tmp_path: Path) -> Path:
    """The same run with another learning rate and a better score."""
    read = bundles.load(small_bundle)
    optimizer = read.config["train"]["optimizer"] | {"learning_rate": 0.125}
    config = read.config | {"train": read.config["train"] | {"optimizer": optimizer}}
    models = read.metrics["models"] | {"clv": read.metrics["models"]["clv"] | {"auc": 0.98765}}
    bundles.save(replace(read, config=config, metrics=read.metrics | {"models": models}), tmp_path / "other")
    return tmp_path / "other"


def test_what_differs_stands_side_by_side(small_bundle: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.run(compare.Options(runs=(small_bundle, other)))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["setting", "bundle", "other"] in lines
    assert ["optimizer.learning_rate", "0.002", "0.125"] in lines
    assert sum(bool(line) and "." in line[0] for line in lines) == 1  # the only setting that differs
    (auc,) = [line for line in lines if line[:1] == ["auc"]]
    assert auc[2] == "0.9877"
    compare.run(compare.Options(runs=(small_bundle, other), all=True))
    assert ["optimizer.weight_decay", "0.02", "0.02"] in [x.split() for x in capsys.readouterr().out.splitlines()]


def test_the_same_run_twice_differs_in_nothing(small_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.run(compare.Options(runs=(small_bundle, small_bundle)))
    assert "every setting is the same" in capsys.readouterr().out


def test_fewer_than_two_runs_or_something_else_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give two runs or more to compare, not 1"):
        compare.run(compare.Options(runs=(small_bundle,)))
    shutil.copytree(small_bundle, tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"metrics\.json"):
        compare.run(compare.Options(runs=(small_bundle, tmp_path / "damaged")))
