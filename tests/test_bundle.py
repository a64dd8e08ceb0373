import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from clv import bundle as bundles
from clv.bundle import Bundle, BundleError
from clv.train.config import TrainConfig

FILES = ["btyd.json", "calibration.json", "card.md", "config.json", "items.safetensors", "metrics.json"]
FILES += ["report.html", "vocab.json", "weights.safetensors"]


def small(seed: int = 0) -> Bundle:
    rng = np.random.default_rng(seed)
    return Bundle(
        config={"dataset": "shop", "cut": "2011-06-12T00:00:00+00:00", "value_scale": 1 / 3},
        vocab={"numeric": ["f_recency"], "words": ["Ünïcode", ""]},
        btyd={"horizons": [30, 90], "r": 0.1 + 0.2},
        calibration={"blend_value": [0.5, 0.25]},
        metrics={"held_out": None},
        weights={"a.weight": rng.normal(size=(3, 4)).astype(np.float32), "b": np.float32(rng.normal(size=5))[::-1]},
        items={"item_keys": rng.integers(-(2**60), 2**60, 7), "text_vectors": np.zeros((8, 0), np.float32)},
        texts={"card.md": "# Geschäft: £ und €\n", "report.html": "<html></html>"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundles.save(small(), tmp_path / "bundle")
    return tmp_path / "bundle"


def assert_same(first: Bundle, second: Bundle) -> None:
    for part in fields(Bundle):
        a, b = getattr(first, part.name), getattr(second, part.name)
        if part.name in ("weights", "items"):
            assert a.keys() == b.keys()
            for name in a:
                assert a[name].dtype == b[name].dtype
                assert np.array_equal(a[name], b[name]), name
        elif part.name != "version":
            assert a == b, part.name


def left_over(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_a_bundle_survives_the_disk_to_the_bit(tmp_path: Path) -> None:
    version = bundles.save(small(), tmp_path / "deep" / "bundle")
    found = bundles.load(tmp_path / "deep" / "bundle")
    assert_same(found, small())
    assert found.version == version
    assert len(version) == 12
    assert left_over(tmp_path / "deep") == ["bundle"]
    assert left_over(tmp_path / "deep" / "bundle") == sorted([*FILES, "manifest.json"])


def test_the_version_is_that_of_the_contents(tmp_path: Path) -> None:
    versions = [bundles.save(small(seed), tmp_path / str(i)) for i, seed in enumerate((0, 0, 1))]
    assert versions[0] == versions[1] != versions[2]


def test_the_manifest_names_dataset_cut_library_and_the_hash_of_every_file(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == bundles.FORMAT
    assert manifest["dataset"] == "shop"
    assert manifest["cut"] == "2011-06-12T00:00:00+00:00"
    assert sorted(manifest["sha256"]) == FILES
    assert bundles.verify(folder) == manifest


def test_no_file_of_a_bundle_is_a_pickle(folder: Path) -> None:
    for path in folder.iterdir():
        assert path.suffix in {".json", ".md", ".html", ".safetensors"}
        assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"PK"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_one_other_byte_is_named(name: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name} differs from its sha256 in manifest.json; the bundle is damaged"):
        bundles.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 10])
def test_a_truncated_file_is_named(name: str, keep: int, folder: Path) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    with pytest.raises(BundleError, match=f"{name} differs from its sha256"):
        bundles.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing; restore the bundle or train again"):
        bundles.load(folder)


@pytest.mark.parametrize("name", [n for n in FILES if n not in ("card.md", "report.html")])
def test_a_manifest_that_does_not_vouch_for_a_needed_file_is_refused(name: str, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"{name} is missing"):
        bundles.load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 1, "sha256": 3, "version": ""}', b"\xff\xfe{"]
)
def test_a_damaged_manifest_is_named(text: str | bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(BundleError, match=r"manifest\.json is damaged or not that of a bundle"):
        bundles.load(folder)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        bundles.load(tmp_path)
    with pytest.raises(BundleError, match=r"nowhere is not a bundle: it has no manifest\.json"):
        bundles.load(tmp_path / "nowhere")


def test_a_newer_bundle_is_refused_with_both_formats(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": bundles.FORMAT + 1}))
    with pytest.raises(
        BundleError,
        match=f"has bundle format {bundles.FORMAT + 1}, this version of clv reads {bundles.FORMAT}; upgrade clv",
    ):
        bundles.load(folder)


def test_a_bundle_replaces_a_bundle(folder: Path) -> None:
    version = bundles.save(small(1), folder)
    assert bundles.load(folder).version == version
    assert_same(bundles.load(folder), small(1))
    assert left_over(folder.parent) == ["bundle"]


def test_what_is_no_bundle_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("more work")
    for name in ("thesis", "file"):
        with pytest.raises(ValueError, match=f"{name} exists and is not a bundle; choose another --out"):
            bundles.save(small(), tmp_path / name)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    assert left_over(tmp_path) == ["file", "thesis"]
    (tmp_path / "empty").mkdir()
    assert bundles.save(small(), tmp_path / "empty") == bundles.load(tmp_path / "empty").version


@pytest.mark.parametrize("broken", ["metrics", "weights"])
def test_an_interrupted_save_leaves_the_old_bundle_and_nothing_else(broken: str, folder: Path) -> None:
    bad: Any = {"score": float("nan")} if broken == "metrics" else {"a": np.array([object()])}
    with pytest.raises((ValueError, SafetensorError), match=r"JSON compliant|Unknown dtype"):
        bundles.save(replace(small(1), **{broken: bad}), folder)
    assert_same(bundles.load(folder), small(0))
    assert left_over(folder.parent) == ["bundle"]
    with pytest.raises((ValueError, SafetensorError), match=r"JSON compliant|Unknown dtype"):
        bundles.save(replace(small(1), **{broken: bad}), folder.with_name("new"))
    assert left_over(folder.parent) == ["bundle"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_bundle(failing: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    real = os.replace

    def sometimes(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(5, "the disk went away")
        real(source, target)

    monkeypatch.setattr(os, "replace", sometimes)
    with pytest.raises(OSError, match="the disk went away"):
        bundles.save(small(1), folder)
    assert_same(bundles.load(folder), small(0))
    assert left_over(folder.parent) == ["bundle"]


def test_a_copied_bundle_is_the_same_bundle(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert_same(bundles.load(tmp_path / "copy"), bundles.load(folder))


def test_settings_become_plain_json() -> None:
    plain = bundles.plain_json(TrainConfig())
    assert plain["model"]["backbone"]["width"] == 128
    assert json.loads(json.dumps(plain)) == plain
