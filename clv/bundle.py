"""A bundle: one folder that holds a trained model and everything that was fitted with it. No pickle in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from clv.version import __version__

FORMAT = 3
MANIFEST = "manifest.json"
JSON_PARTS = ("config", "vocab", "btyd", "calibration", "metrics")


class BundleError(ValueError):
    """The folder is not a bundle that this version can trust."""


@dataclass(frozen=True)
class Bundle:
    """Contents of a bundle. `config`: settings and facts of the dataset; the other parts as their owners write them."""

    config: dict[str, Any]
    vocab: dict[str, Any]
    btyd: dict[str, Any]
    calibration: dict[str, Any]
    metrics: dict[str, Any]
    weights: dict[str, NDArray[Any]]
    items: dict[str, NDArray[Any]]
    texts: Mapping[str, str] = field(default_factory=dict)  # report.html, card.md
    version: str = ""


def save(bundle: Bundle, folder: Path) -> str:
    """Write beside the target, then rename: nobody sees half a bundle. Returns its version.

    Raises ValueError if `folder` holds something that is not a bundle.
    """
    folder = Path(folder)
    check_target(folder)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    try:
        for name in JSON_PARTS:
            (aside / f"{name}.json").write_text(json.dumps(getattr(bundle, name), indent=1, allow_nan=False))
        save_file(_contiguous(bundle.weights), str(aside / "weights.safetensors"))
        save_file(_contiguous(bundle.items), str(aside / "items.safetensors"))
        for name, text in bundle.texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        hashes = {path.name: sha256_of(path) for path in sorted(aside.iterdir())}
        version = version_of(hashes)
        manifest = {
            "format": FORMAT,
            "version": version,
            "library": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "dataset": bundle.config.get("dataset"),
            "cut": bundle.config.get("cut"),
            "sha256": hashes,
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _swap(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return version


def check_target(folder: Path) -> None:
    """ValueError if `folder` holds something that is not a bundle and must not be replaced."""
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} exists and is not a bundle; choose another --out")


def load(folder: Path | str) -> Bundle:
    """Read and verify; raises BundleError for a damaged, foreign or newer folder."""
    folder = Path(folder)
    manifest = verify(folder)
    parts = {name: json.loads((folder / f"{name}.json").read_text()) for name in JSON_PARTS}
    names = [name for name in manifest["sha256"] if name.endswith((".html", ".md"))]
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    return Bundle(
        weights=load_file(str(folder / "weights.safetensors")),
        items=load_file(str(folder / "items.safetensors")),
        texts=texts,
        version=manifest["version"],
        **parts,
    )


def verify(folder: Path | str) -> dict[str, Any]:
    """The manifest of a bundle whose every file has the hash it was written with."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        known, hashes = manifest["format"], dict(manifest["sha256"])
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError):  # not JSON, not UTF-8, or JSON of another kind
        raise BundleError(
            f"{folder}/{MANIFEST} is damaged or not that of a bundle; train again or restore it"
        ) from None
    if known != FORMAT:
        remedy = "upgrade clv" if known > FORMAT else "train again"
        raise BundleError(f"{folder} has bundle format {known}, this version of clv reads {FORMAT}; {remedy}")
    wanted = {f"{name}.json" for name in JSON_PARTS} | {"weights.safetensors", "items.safetensors"}
    for name in sorted(wanted | set(hashes)):
        path = folder / name
        if name not in hashes or not path.is_file():
            raise BundleError(f"{folder}: {name} is missing; restore the bundle or train again")
        if sha256_of(path) != hashes[name]:
            raise BundleError(f"{folder}: {name} differs from its sha256 in {MANIFEST}; the bundle is damaged")
    return dict(manifest)


def version_of(hashes: Mapping[str, str]) -> str:
    """The version of a bundle whose files have these sha256: equal files, equal version."""
    return hashlib.sha256(json.dumps(dict(hashes), sort_keys=True).encode()).hexdigest()[:12]


def as_json(settings: Any) -> Any:
    """A dataclass as plain JSON values."""
    return json.loads(json.dumps(asdict(settings)))


def _swap(aside: Path, folder: Path) -> None:
    """Put `aside` in the place of `folder`; what stood there goes only when the new one stands."""
    if not folder.exists():
        os.replace(aside, folder)
        return
    old = aside.with_name(aside.name + ".old")
    os.replace(folder, old)
    try:
        os.replace(aside, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _contiguous(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
