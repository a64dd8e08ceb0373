"""Promotion from the command line, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clv import bundle as bundles
from clv.registry import Registry
from ray_jobs import promote, rollback


def variant(bundle: Path, folder: Path, **config: object) -> Path:
    """Writes the bundle with another configuration, hence another version."""
    read = bundles.load(bundle)
    bundles.save(replace(read, config=read.config | config), folder)
    return folder


def test_a_promotion_and_its_rollback(small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, second_bundle = tmp_path / "registry", variant(small_bundle, tmp_path / "b", note="refit")
    promote.run(promote.Options(registry=root, bundle=small_bundle))
    first = Registry(root).current()
    promote.run(promote.Options(registry=root, bundle=second_bundle, publish_only=True))
    assert Registry(root).current() == first
    (second,) = set(Registry(root).versions()) - {first}
    with pytest.raises(ValueError, match="or a reason for the lack of one"):
        promote.run(promote.Options(registry=root, version=second))
    promote.run(promote.Options(registry=root, version=second, reason="newer data"))
    assert Registry(root).current() == second
    rollback.run(rollback.Options(registry=root, reason="complaints"))
    assert Registry(root).current() == first
    assert capsys.readouterr().out.splitlines()[-1] == f"in production: {first} (before: {second})"


def test_a_bundle_that_cannot_be_loaded_is_not_promoted(small_bundle: Path, tmp_path: Path) -> None:
    root, broken = tmp_path / "registry", variant(small_bundle, tmp_path / "broken", value_scale="much")
    promote.run(promote.Options(registry=root, bundle=small_bundle))
    first = Registry(root).current()
    with pytest.raises(ValueError, match="cannot be loaded: ValueError: could not convert string to float: 'much'"):
        promote.run(promote.Options(registry=root, bundle=broken, reason="newer data"))
    assert Registry(root).current() == first


@pytest.mark.parametrize("given", [{}, {"bundle": Path("b"), "version": "v"}])
def test_a_bundle_or_a_version_is_needed(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="either --bundle or --version"):
        promote.run(promote.Options(registry=tmp_path, **given))
