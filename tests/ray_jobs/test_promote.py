"""Promotion from the command line, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clv import bundle as bundles
from clv.registry import Registry
from ray_jobs import promote, rollback


def make_bundle(folder: Path, content: float) -> Path:
    empty = {"vocab": {}, "btyd": {}, "calibration": {}, "metrics": {}, "items": {}}
    config = {"cut_us": 1_307_836_800_000_000}
    bundles.save(bundles.Bundle(config=config, weights={"w": np.array([content])}, **empty), folder)
    return folder


def test_a_promotion_and_its_rollback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "registry"
    promote.run(promote.Options(registry=root, bundle=make_bundle(tmp_path / "a", 1.0)))
    first = Registry(root).current()
    promote.run(promote.Options(registry=root, bundle=make_bundle(tmp_path / "b", 2.0), publish_only=True))
    assert Registry(root).current() == first
    (second,) = set(Registry(root).versions()) - {first}
    with pytest.raises(ValueError, match="or a reason for the lack of one"):
        promote.run(promote.Options(registry=root, version=second))
    promote.run(promote.Options(registry=root, version=second, reason="newer data"))
    assert Registry(root).current() == second
    rollback.run(rollback.Options(registry=root, reason="complaints"))
    assert Registry(root).current() == first
    assert capsys.readouterr().out.splitlines()[-1] == f"in production: {first} (before: {second})"


@pytest.mark.parametrize("given", [{}, {"bundle": Path("b"), "version": "v"}])
def test_a_bundle_or_a_version_is_needed(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="either --bundle or --version"):
        promote.run(promote.Options(registry=tmp_path, **given))
