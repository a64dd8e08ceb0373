"""Text backbone (experimental): a pretrained text encoder over the word pieces of a text history.

Any encoder fits that `AutoModel` loads and whose tokenizer has [CLS], [SEP] and [PAD]: BERT, RoBERTa, DistilBERT,
ELECTRA, MPNet, … On the project's benchmark it forecasts as well as the event encoder, at fifty times the cost;
docs/experimental/text-histories.md has the figures.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from clv.models.backbones.text_encoder import checkpoint_folder
from clv.models.config import BackboneConfig

# Names of the dropout in the configurations of the encoder families.
DROPOUT_NAMES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


class TextBackbone(nn.Module):
    """Word pieces (B, T) and their mask -> states (B, T, W); random weights until `load_weights` fills them."""

    def __init__(self, checkpoint: dict[str, Any], config: BackboneConfig) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        own = AutoConfig.for_model(**checkpoint)
        for name in DROPOUT_NAMES:
            if hasattr(own, name):
                setattr(own, name, config.dropout)
        self.model: Any = AutoModel.from_config(own, dtype=torch.float32)
        # The model uses the state of every piece; a pooler would never receive a gradient.
        if hasattr(self.model, "pooler"):
            self.model.pooler = None

    def forward(self, pieces: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.model(input_ids=pieces, attention_mask=mask.long()).last_hidden_state
        return out


class PieceIds(nn.Module):
    """Batch -> word pieces (B, T), in place of a token embedding: the encoder has its own table of word pieces."""

    def forward(self, batch: Any) -> Tensor:
        pieces: Tensor = batch.codes[..., 0]
        return pieces


def backbone_config(source: str, max_tokens: int) -> BackboneConfig:
    """The shape of a checkpoint, for texts of at most `max_tokens` word pieces, [CLS] and [SEP] included.

    Raises ValueError for a checkpoint that is no such encoder, and for texts of under 16 or more pieces than it takes.
    """
    own, tokenizer = _config(source), load_tokenizer(source)
    if getattr(own, "is_encoder_decoder", False):
        raise ValueError(f"text encoder {source!r} is an encoder with a decoder: give an encoder such as BERT")
    longest = min(own.max_position_embeddings, tokenizer.model_max_length)
    if not 16 <= max_tokens <= longest:
        raise ValueError(f"text encoder {source!r} takes texts of 16 to {longest} word pieces, not {max_tokens}")
    return BackboneConfig(
        width=own.hidden_size,
        num_layers=own.num_hidden_layers,
        num_heads=own.num_attention_heads,
        intermediate=getattr(own, "intermediate_size", None) or getattr(own, "hidden_dim", 4 * own.hidden_size),
        max_tokens=max_tokens,
        pretrained=source,
    )


def check_shape(source: str, backbone: BackboneConfig) -> None:
    """Raises ValueError where `backbone` has another shape than the checkpoint."""
    checkpoint = backbone_config(source, backbone.max_tokens)
    for name in ("architecture", "width", "num_layers", "num_heads", "intermediate"):
        given, wanted = getattr(backbone, name), getattr(checkpoint, name)
        if given != wanted:
            raise ValueError(
                f"model.backbone.{name} is {given}, that of the text encoder {source!r} is {wanted}; leave it out"
            )


def checkpoint_config(source: str) -> dict[str, Any]:
    """The configuration of a checkpoint as plain JSON; `TextBackbone` needs nothing else to build the encoder."""
    plain: dict[str, Any] = json.loads(_config(source).to_json_string(use_diff=False))
    return {key: value for key, value in plain.items() if value is not None and not key.startswith("_")}


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a checkpoint; ValueError where it has no [CLS], [SEP] or [PAD]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder(source), local_files_only=True)
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise ValueError(f"text encoder {source!r}: its tokenizer has no [CLS], [SEP] and [PAD]; give a BERT-like one")
    return tokenizer


def load_weights(backbone: nn.Module, source: str) -> str:
    """Loads every tensor of a checkpoint but its pooler into `backbone`; returns the sha256 of the loaded tensors."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint_folder(source), local_files_only=True, dtype=torch.float32)
    found = {name: t for name, t in model.state_dict().items() if not name.startswith("pooler.")}
    backbone.get_submodule("model").load_state_dict(found)
    digest = hashlib.sha256()
    for name, tensor in sorted(found.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _config(source: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(checkpoint_folder(source), local_files_only=True)
