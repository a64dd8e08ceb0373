"""A pretrained text encoder as the backbone: word pieces in, a vector for each out. Any encoder that `AutoModel` loads
and whose tokenizer marks where a text begins and ends: BERT, RoBERTa, DistilBERT, ELECTRA, MPNet, …
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from clv.models.backbones.encoders import BackboneConfig
from clv.models.backbones.text_encoder import resolve

# Names that the families of encoders give to their dropout.
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


class TextBackbone(nn.Module):
    """(B, P) word pieces and their mask -> (B, P, width); random weights until they are loaded."""

    def __init__(self, checkpoint: dict[str, Any], config: BackboneConfig) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        own = AutoConfig.for_model(**checkpoint)
        for name in DROPOUT:
            if hasattr(own, name):
                setattr(own, name, config.dropout)
        self.model: Any = AutoModel.from_config(own, dtype=torch.float32)
        # Every piece's vector is read, not the pooler's: it would never see a gradient.
        if hasattr(self.model, "pooler"):
            self.model.pooler = None

    def forward(self, pieces: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.model(input_ids=pieces, attention_mask=mask.long()).last_hidden_state
        return out


class Pieces(nn.Module):
    """Stands where events are embedded: the encoder has its own table of word pieces."""

    def forward(self, batch: Any) -> Tensor:
        pieces: Tensor = batch.codes[..., 0]
        return pieces


def shape_of(source: str, max_tokens: int) -> BackboneConfig:
    """The backbone that a checkpoint is, for texts of at most `max_tokens` word pieces, marks counted.

    Raises ValueError for a checkpoint that is no such encoder, and for longer texts than it reads.
    """
    own, tokenizer = _config(source), tokenizer_of(source)
    if getattr(own, "is_encoder_decoder", False):
        raise ValueError(f"text encoder {source!r} is an encoder with a decoder: give an encoder such as BERT")
    longest = min(own.max_position_embeddings, tokenizer.model_max_length)
    if not 16 <= max_tokens <= longest:
        raise ValueError(f"text encoder {source!r}: texts of {max_tokens} word pieces, it reads 16 to {longest}")
    return BackboneConfig(
        width=own.hidden_size,
        num_layers=own.num_hidden_layers,
        num_heads=own.num_attention_heads,
        intermediate=getattr(own, "intermediate_size", None) or getattr(own, "hidden_dim", 4 * own.hidden_size),
        max_tokens=max_tokens,
        pretrained=source,
    )


def check_shape(source: str, backbone: BackboneConfig) -> None:
    """ValueError where `backbone` is not the shape of the checkpoint."""
    found = shape_of(source, backbone.max_tokens)
    for name in ("architecture", "width", "num_layers", "num_heads", "intermediate"):
        ours, theirs = getattr(backbone, name), getattr(found, name)
        if ours != theirs:
            raise ValueError(
                f"model.backbone.{name} {ours} is not that of the text encoder {source!r}, {theirs}; leave it out"
            )


def configuration(source: str) -> dict[str, Any]:
    """The configuration of a checkpoint as plain JSON: with it and the weights nothing else is needed."""
    plain: dict[str, Any] = json.loads(_config(source).to_json_string(use_diff=False))
    return {key: value for key, value in plain.items() if value is not None and not key.startswith("_")}


def tokenizer_of(source: str) -> Any:
    """ValueError where it does not mark the beginning and the end of a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(source), local_files_only=True)
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise ValueError(f"text encoder {source!r}: its tokenizer has no [CLS], [SEP] and [PAD]; give a BERT-like one")
    return tokenizer


def load(backbone: nn.Module, source: str) -> str:
    """Loads every tensor of a checkpoint but its pooler; returns the sha256 of what was loaded."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(resolve(source), local_files_only=True, dtype=torch.float32)
    found = {name: t for name, t in model.state_dict().items() if not name.startswith("pooler.")}
    backbone.get_submodule("model").load_state_dict(found)
    digest = hashlib.sha256()
    for name, tensor in sorted(found.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _config(source: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(resolve(source), local_files_only=True)
