"""Transfer learning: the folder of a pretrained event encoder, and the warm start of a model from it.

    backbone.json         shape, vocabulary by key, the datasets that the encoder has seen and until when
    backbone.safetensors  `embedding.*` and `backbone.*`, named as in `CustomerModel`

A warm start loads the whole backbone and, of the embedding, every tensor that means the same everywhere (scales, time
and amount bins, weekdays), and the rows of types, channels, items and categories whose keys agree. The projection of
item texts is not part of it and starts at zero, so that it adds nothing to what the encoder has learned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clv.data.clock import to_datetime
from clv.data.workdir import check_output, temporary_folder, write_json
from clv.models.backbones import encoders, text_backbone
from clv.models.config import BackboneConfig
from clv.models.inputs.feature_space import FeatureSpace

FORMAT = 1
CONFIG = encoders.EVENT_ENCODER
WEIGHTS = "backbone.safetensors"
# Embedding tables whose rows are matched by key, with the name of their vocabulary.
MATCHED = {"codes.0": "types", "codes.5": "channels", "items": "items", "categories": "categories"}


@dataclass(frozen=True)
class SeenDataset:
    """A dataset of the pretraining and its cutoff (us): the encoder has seen every event before it."""

    dataset: str
    cut_us: int


@dataclass(frozen=True)
class WarmStart:
    """The result of a warm start: sha256 of the encoder's tensors, and (matched, all) rows of each vocabulary."""

    sha256: str
    matched: dict[str, tuple[int, int]]

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"{matched:,} of {rows:,} {name}" for name, (matched, rows) in self.matched.items() if rows]
        return f"pretrained encoder {self.sha256[:12]}: whole backbone loaded; it knows {', '.join(parts) or 'no keys'}"


def save(
    folder: Path,
    config: BackboneConfig,
    space: FeatureSpace,
    weights: Mapping[str, Tensor],
    seen: Sequence[SeenDataset],
    notes: Mapping[str, Any],
) -> str:
    """Writes the folder to a staging path, then renames it; returns the sha256 of its tensors.

    notes: further entries of backbone.json, for people. Raises ValueError for a folder that must not be replaced.
    """
    check_target(folder)
    kept = {name: t.contiguous() for name, t in weights.items() if name.startswith(("embedding.", "backbone."))}
    facts = {"format": FORMAT, "backbone": asdict(config) | {"pretrained": None}, "vocabulary": _vocabulary(space)}
    facts |= {"seen": [asdict(one) for one in seen], "sha256": _digest(kept), **notes}
    with temporary_folder(folder) as staging:
        save_file(kept, str(staging / WEIGHTS))
        write_json(staging / CONFIG, facts)
    return str(facts["sha256"])


def check_target(folder: Path) -> None:
    """Raises ValueError where `folder` is neither free nor a pretrained encoder, so that it must not be replaced."""
    check_output(folder, "a pretrained encoder", CONFIG)


def read_config(folder: Path | str) -> dict[str, Any]:
    """Reads backbone.json; raises ValueError for a damaged one and for one of another format."""
    path = Path(folder) / CONFIG
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = facts["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged; pretrain again or restore it") from None
    if version != FORMAT:
        raise ValueError(f"{folder} has format {version}, this version of clv reads {FORMAT}; upgrade clv")
    return facts


def check_cut(source: str | None, dataset: str, cut_us: int, needed: str) -> None:
    """Raises ValueError where the encoder `source` has seen this dataset after `cut_us` (us): leakage.

    needed: the date of `cut_us` in the words of the message.
    """
    if source is None or not encoders.is_event_encoder(source):
        return
    for seen in read_config(source)["seen"]:
        if seen["dataset"] == dataset and seen["cut_us"] > cut_us:
            through = to_datetime(seen["cut_us"]).date()
            raise ValueError(
                f"pretrained {source!r} has seen {dataset} until {through}, after {needed}, the cutoff or first origin "
                "of the evaluation: run ray_jobs.pretrain with the --origin of the training"
            )


def joint_space(spaces: list[FeatureSpace]) -> FeatureSpace:
    """The vocabularies of several datasets in one space; without item texts, whose axes differ between datasets.

    Scalers and clip points are those of the first dataset; `with_amount_scale` replaces those of amounts.
    """
    names = sorted({name for space in spaces for name in space.category_names})
    keys, first_index = np.unique(np.concatenate([space.item_keys for space in spaces]), return_index=True)
    learned = np.concatenate([space.item_rank for space in spaces])[first_index] > 0
    category = []
    for space in spaces:
        to_joint = np.array([0, *(names.index(name) + 1 for name in space.category_names)])
        category.append(to_joint[space.item_category[1:]])
    return replace(
        spaces[0],
        types=np.unique(np.concatenate([space.types for space in spaces])),
        channels=np.unique(np.concatenate([space.channels for space in spaces])),
        item_keys=keys,
        item_rank=np.where(learned, np.cumsum(learned), 0),
        item_category=np.append(0, np.concatenate(category)[first_index]).astype(np.int64),
        category_names=tuple(names),
        text_vectors=np.zeros((len(keys) + 1, 0), np.float32),
    )


def with_amount_scale(joint: FeatureSpace, dataset: FeatureSpace) -> FeatureSpace:
    """The joint space with the amount scale of one dataset: a large amount is one that is large in its own dataset."""
    return replace(
        joint,
        amount_edges=dataset.amount_edges,
        amount_center=dataset.amount_center,
        amount_scale=dataset.amount_scale,
    )


def warm_start(model: nn.Module, space: FeatureSpace, config: BackboneConfig, source: str) -> WarmStart | str:
    """Loads `source` into `embedding` and `backbone` of a model.

    source: a folder of `ray_jobs.pretrain`, a text encoder for a model of text histories, or a BERT. Returns the sha256
    of the loaded tensors for the latter two. Raises ValueError where shapes differ or a tensor is missing.
    """
    if space.text is not None:
        return text_backbone.load_weights(model.get_submodule("backbone"), source)
    if not encoders.is_event_encoder(source):
        return encoders.load_pretrained(model.get_submodule("backbone"), source)
    facts = read_config(source)
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
    return _warm_start(facts, space)


def describe(space: FeatureSpace, config: BackboneConfig, source: str) -> str:
    """One line for the log about a warm start from `source`; raises what `warm_start` would raise for the backbone."""
    if space.text is not None:
        sha256 = text_backbone.load_weights(text_backbone.TextBackbone(space.text.checkpoint, config), source)
        return f"text encoder {source}: every tensor loaded, sha256 {sha256[:12]}; {space.text.describe()}"
    if not encoders.is_event_encoder(source):
        sha256 = encoders.load_pretrained(encoders.build(replace(config, pretrained=None)), source)
        return f"pretrained {source}: every encoder tensor loaded, sha256 {sha256[:12]}"
    facts = read_config(source)
    _check_shape(source, facts["backbone"], config)
    return _warm_start(facts, space).summary()


def _warm_start(facts: dict[str, Any], space: FeatureSpace) -> WarmStart:
    wanted, known = _vocabulary(space), facts["vocabulary"]
    matched = {kind: (len(set(keys) & set(known[kind])), len(keys)) for kind, keys in wanted.items()}
    return WarmStart(facts["sha256"], matched)


def _check_shape(source: str, stored: dict[str, Any], config: BackboneConfig) -> None:
    free = ("dropout", "pretrained", "max_tokens")
    for name, given in asdict(config).items():
        if name in stored and name not in free and stored[name] != given:
            raise ValueError(
                f"pretrained {source!r} has backbone.{name} {stored[name]}, this run {given}; use the settings that it "
                "was pretrained with"
            )


def _matched_rows(own: Tensor, found: Tensor, wanted: list[Any], known: list[Any]) -> Tensor:
    """`own` with row 0 (unknown) and the rows of keys in both vocabularies replaced by those of `found`."""
    row_of_key = {key: row for row, key in enumerate(known, start=1)}
    pairs = [(row, row_of_key[key]) for row, key in enumerate(wanted, start=1) if key in row_of_key]
    rows = torch.tensor([(0, 0), *pairs])
    out = own.clone()
    out[rows[:, 0]] = found[rows[:, 1]].to(own.dtype)
    return out


def _vocabulary(space: FeatureSpace) -> dict[str, list[Any]]:
    """The keys of each vocabulary in the order of their embedding rows (from 1)."""
    learned = np.flatnonzero(space.item_rank > 0)
    return {
        "types": space.types.tolist(),
        "channels": space.channels.tolist(),
        "items": space.item_keys[learned[np.argsort(space.item_rank[learned])]].tolist(),
        "categories": list(space.category_names),
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
