"""Bundle: a folder with a trained model and everything fitted with it, in open formats and verified by hashes.

The files are JSON, safetensors, HTML and Markdown; none is a pickle. `manifest.json` holds the sha256 of each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from clv.data.hashing import file_sha256
from clv.data.workdir import check_output, temporary_folder
from clv.version import __version__

FORMAT = 5
MANIFEST = "manifest.json"
JSON_PARTS = ("config", "vocab", "btyd", "calibration", "metrics")


class BundleError(ValueError):
    """The folder is no bundle of this format, or a file of it is missing or damaged."""


@dataclass(frozen=True)
class Bundle:
    """Contents of a bundle.

    config: settings and facts of the dataset; vocab and items: `FeatureSpace`; btyd: `SeasonalBTYD`; calibration:
    `Adjustment`; metrics: those of the held-out origin; weights: the model's tensors; texts: report.html and card.md.
    """

    config: dict[str, Any]
    vocab: dict[str, Any]
    btyd: dict[str, Any]
    calibration: dict[str, Any]
    metrics: dict[str, Any]
    weights: dict[str, NDArray[Any]]
    items: dict[str, NDArray[Any]]
    texts: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


def save(bundle: Bundle, folder: Path) -> str:
    """Write the bundle to `folder`, in one step, and return its version: equal files give the equal version.

    The files are written beside the folder, which a rename then replaces, so that no reader finds half a bundle. Raises
    ValueError if `folder` holds anything but a bundle.
    """
    check_target(folder)
    with temporary_folder(folder) as staging:
        for name in JSON_PARTS:
            (staging / f"{name}.json").write_text(json.dumps(getattr(bundle, name), indent=1, allow_nan=False))
        save_file(_contiguous(bundle.weights), str(staging / "weights.safetensors"))
        save_file(_contiguous(bundle.items), str(staging / "items.safetensors"))
        for name, text in bundle.texts.items():
            (staging / name).write_text(text, encoding="utf-8")
        hashes = {path.name: file_sha256(path) for path in sorted(staging.iterdir())}
        version = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:12]
        manifest = {
            "format": FORMAT,
            "version": version,
            "library": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "dataset": bundle.config.get("dataset"),
            "cut": bundle.config.get("cut"),
            "sha256": hashes,
        }
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return version


def check_target(folder: Path) -> None:
    """Raises ValueError if `folder` holds anything but a bundle, which `save` must not replace."""
    check_output(folder, "a bundle", MANIFEST, "weights.safetensors")


def load(folder: Path | str) -> Bundle:
    """Read and verify a bundle; raises BundleError for a folder that is damaged, no bundle, or of another format."""
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
    """The manifest of a bundle; raises BundleError unless every file has the hash in the manifest."""
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
        if file_sha256(path) != hashes[name]:
            raise BundleError(f"{folder}: {name} differs from its sha256 in {MANIFEST}; the bundle is damaged")
    return dict(manifest)


def plain_json(settings: Any) -> Any:
    """Plain JSON values of a dataclass."""
    return json.loads(json.dumps(asdict(settings)))


def _contiguous(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
