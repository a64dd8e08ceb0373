"""A pretrained event encoder as a folder, and how a model of another shop or cut starts from it.

    backbone.json         shape, vocabulary by key, the shops it has seen and until when
    backbone.safetensors  `embedding.*` and `backbone.*`, named as in `CustomerModel`

The backbone is taken whole. Of the embedding, what means the same everywhere (scales, time and amount bins, weekdays)
is taken whole too, and rows of types, channels, items and categories where the keys agree. Item texts are not part of
it: their projection starts at zero, a silent addition to what was learned.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clv.models.backbones import encoders, text_backbone
from clv.models.backbones.encoders import BackboneConfig
from clv.models.inputs.feature_space import FeatureSpace

FORMAT = 1
SHAPE = encoders.EVENT_ENCODER
WEIGHTS = "backbone.safetensors"
MATCHED = {"codes.0": "types", "codes.5": "channels", "items": "items", "categories": "categories"}


@dataclass(frozen=True)
class Seen:
    """A shop that the encoder was pretrained on, and the instant (us) it knows it until."""

    dataset: str
    cut_us: int


@dataclass(frozen=True)
class Loaded:
    """What a warm start took: sha256 of the tensors, rows matched and rows wanted of each vocabulary."""

    sha256: str
    matched: dict[str, tuple[int, int]]

    def line(self) -> str:
        parts = [f"{hits:,} of {wanted:,} {name}" for name, (hits, wanted) in self.matched.items() if wanted]
        return f"pretrained encoder {self.sha256[:12]}: backbone whole; known to it {', '.join(parts) or 'nothing'}"


def save(
    folder: Path,
    config: BackboneConfig,
    space: FeatureSpace,
    weights: Mapping[str, Tensor],
    seen: Sequence[Seen],
    more: Mapping[str, Any],
) -> str:
    """Writes the folder aside, then renames it; returns the sha256 of its tensors. `more` is kept for people."""
    check_target(folder)
    kept = {name: t.contiguous() for name, t in weights.items() if name.startswith(("embedding.", "backbone."))}
    facts = {"format": FORMAT, "backbone": asdict(config) | {"pretrained": None}, "vocabulary": _vocabulary(space)}
    facts |= {"seen": [asdict(one) for one in seen], "sha256": _digest(kept), **more}
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    try:
        save_file(kept, str(aside / WEIGHTS))
        (aside / SHAPE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return str(facts["sha256"])


def check_target(folder: Path) -> None:
    """ValueError if `folder` holds something that is not a pretrained encoder and must not be replaced."""
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and not (folder / SHAPE).is_file():
        raise ValueError(f"{folder} exists and is not a pretrained encoder; choose another --out")


def facts_of(folder: Path | str) -> dict[str, Any]:
    """backbone.json; ValueError for a damaged or newer one."""
    path = Path(folder) / SHAPE
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = facts["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged; pretrain again or restore it") from None
    if known != FORMAT:
        raise ValueError(f"{folder} has format {known}, this version of clv reads {FORMAT}; upgrade clv")
    return facts


def check_cut(source: str | None, dataset: str, cut_us: int, needed: str) -> None:
    """ValueError if the encoder has seen this dataset at or after `cut_us`: it would judge itself on what it knows.

    needed: the date to name in the message.
    """
    if source is None or not encoders.is_event_encoder(source):
        return
    for one in facts_of(source)["seen"]:
        if one["dataset"] == dataset and one["cut_us"] > cut_us:
            through = datetime.fromtimestamp(one["cut_us"] / 1e6, UTC).date()
            raise ValueError(
                f"pretrained {source!r} has seen {dataset} until {through}, after {needed}, where the model is judged "
                "or cut: run ray_jobs.pretrain with the --origin of the training"
            )


def warm_start(model: nn.Module, space: FeatureSpace, config: BackboneConfig, source: str) -> Loaded | str:
    """Load `source` into a model with `embedding` and `backbone`; an encoder of ours, a text encoder where the model
    reads texts, or a BERT's encoder tensors.

    Returns what was taken (the sha256 for a BERT). Raises ValueError where shapes differ or a tensor is missing.
    """
    if space.text is not None:
        return text_backbone.load(model.get_submodule("backbone"), source)
    if not encoders.is_event_encoder(source):
        return encoders.load_pretrained(model.get_submodule("backbone"), source)
    facts = facts_of(source)
    _check_shape(source, facts["backbone"], config)
    found = load_file(str(Path(source) / WEIGHTS))
    if _digest(found) != facts["sha256"]:
        raise ValueError(f"pretrained {source!r}: {WEIGHTS} differs from its sha256; the folder is damaged")
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(("embedding.", "backbone."))}
    loaded: dict[str, Tensor] = {}
    wanted, known = _vocabulary(space), facts["vocabulary"]
    for name, tensor in own.items():
        part = name.removeprefix("embedding.").removesuffix(".weight")
        if name == "embedding.text.weight":
            loaded[name] = torch.zeros_like(tensor)
        elif name.startswith("embedding.") and part in MATCHED:
            kind = MATCHED[part]
            loaded[name] = _matched_rows(tensor, found[name], wanted[kind], known[kind])
        elif name not in found:
            raise ValueError(f"pretrained {source!r} lacks tensor {name!r}")
        else:
            loaded[name] = found[name].to(tensor.dtype)
    model.load_state_dict(loaded, strict=False)
    return _loaded(facts, space)


def describe(space: FeatureSpace, config: BackboneConfig, source: str) -> str:
    """What a warm start from `source` takes, in one line; raises what `warm_start` would raise for the backbone."""
    if space.text is not None:
        sha256 = text_backbone.load(text_backbone.TextBackbone(space.text.checkpoint, config), source)
        return f"text encoder {source}: every tensor taken, sha256 {sha256[:12]}; {space.text.describe()}"
    if not encoders.is_event_encoder(source):
        sha256 = encoders.load_pretrained(encoders.build(replace(config, pretrained=None)), source)
        return f"pretrained {source}: every encoder tensor taken, sha256 {sha256[:12]}"
    facts = facts_of(source)
    _check_shape(source, facts["backbone"], config)
    return _loaded(facts, space).line()


def _loaded(facts: dict[str, Any], space: FeatureSpace) -> Loaded:
    wanted, known = _vocabulary(space), facts["vocabulary"]
    matched = {kind: (len(set(keys) & set(known[kind])), len(keys)) for kind, keys in wanted.items()}
    return Loaded(facts["sha256"], matched)


def _check_shape(source: str, theirs: dict[str, Any], config: BackboneConfig) -> None:
    free = ("dropout", "pretrained", "max_tokens")
    for name, ours in asdict(config).items():
        if name in theirs and name not in free and theirs[name] != ours:
            raise ValueError(
                f"pretrained {source!r} has backbone.{name} {theirs[name]}, this run {ours}; use the settings that it "
                "was pretrained with"
            )


def _matched_rows(own: Tensor, found: Tensor, wanted: list[Any], known: list[Any]) -> Tensor:
    """Row 0 (unknown), and rows whose key both vocabularies hold, from `found`; the others as they are."""
    place = {key: row for row, key in enumerate(known, start=1)}
    pairs = [(row, place[key]) for row, key in enumerate(wanted, start=1) if key in place]
    rows = torch.tensor([(0, 0), *pairs])
    out = own.clone()
    out[rows[:, 0]] = found[rows[:, 1]].to(own.dtype)
    return out


def _vocabulary(space: FeatureSpace) -> dict[str, list[Any]]:
    return {
        "types": space.types.tolist(),
        "channels": space.channels.tolist(),
        "items": _learned(space),
        "categories": list(space.category_names),
    }


def _learned(space: FeatureSpace) -> list[int]:
    """Keys of the items with a learned vector, in the order of their rows (from 1)."""
    learned = np.flatnonzero(space.item_rank > 0)
    return space.item_keys[learned[np.argsort(space.item_rank[learned])]].tolist()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
