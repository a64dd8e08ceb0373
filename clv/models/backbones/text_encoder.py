"""Text embeddings with a pretrained BERT-like encoder: mean of the last layer over the real tokens, unit length.

The sentence encoders of the MiniLM family were trained for this pooling (Reimers & Gurevych 2019, section 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clv.models.backbones import encoders
from clv.models.inputs.tokens import token_batches

DEFAULT_ENCODER = f"pkg://{encoders.MINILM}"
MAX_LENGTH = 256  # word pieces at which a text is cut; all-MiniLM was trained on no more
# Tokens of one forward pass, padding included: on a core, larger batches leave the cache and take half as long again.
BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}
POOLING = "mean-pooled, unit length, 1"  # part of the fingerprint: must change whenever vectors change


class TextEncoder:
    """Callable: N texts -> (N, D) float32 rows of unit length. Tokenizer and model are loaded once.

    source: a folder, `pkg://PACKAGE` or a hub id. Vectors of equal `fingerprint` can be mixed. Raises ValueError where
    no encoder can be loaded.

        vectors = TextEncoder()(["a red coffee mug", "income tax form"])  # Shape: (2, 384)
    """

    def __init__(
        self,
        source: str = DEFAULT_ENCODER,
        *,
        device: str | torch.device = "cpu",
        max_length: int = MAX_LENGTH,
        batch_tokens: int | None = None,
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = checkpoint_folder(source)
        self.source, self.device = source, torch.device(device)
        self.fingerprint = fingerprint(folder, max_length)
        # The folder is complete: a request to the hub would only wait where there is no network.
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        self.model.to(self.device).eval()
        positions = int(getattr(self.model.config, "max_position_embeddings", max_length))
        self.max_length = min(max_length, positions)
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"])
        self.width = int(self.model.config.hidden_size)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        out = np.zeros((len(texts), self.width), np.float32)
        if not len(texts):
            return out
        pieces = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, return_attention_mask=False)[
            "input_ids"
        ]
        length = np.array([len(piece) for piece in pieces])
        order = np.argsort(length, kind="stable")
        for rows in token_batches(order, length, self.batch_tokens):
            out[rows] = self._encode([pieces[row] for row in rows], length[rows])
        return out

    def _encode(self, pieces: list[list[int]], length: NDArray[np.int64]) -> NDArray[np.float32]:
        mask = np.arange(length.max()) < length[:, None]
        ids = np.full(mask.shape, self.tokenizer.pad_token_id or 0, np.int64)
        ids[mask] = np.concatenate(pieces)
        real = torch.from_numpy(mask).to(self.device)
        # No mask where nothing is padded: attention then takes its fast path.
        attention = None if bool(mask.all()) else real.long()
        states = self.model(input_ids=torch.from_numpy(ids).to(self.device), attention_mask=attention).last_hidden_state
        weight = real.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=1).cpu().numpy())


def checkpoint_folder(source: str) -> Path:
    """The folder of an encoder; a hub id is fetched once and is in the local cache from then on.

    Raises ValueError where `source` is neither a folder with config.json nor a hub id that can be fetched.
    """
    folder = Path(encoders.package_folder(source))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"encoder {source!r}: {folder} holds no config.json; name the folder of a saved model")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted))
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"encoder {source!r} is neither a folder nor a hub id that can be fetched ({type(error).__name__}); "
            f"give a folder, a hub id or {DEFAULT_ENCODER}"
        ) from error


def fingerprint(folder: Path, max_length: int = MAX_LENGTH) -> str:
    """sha256 over weights, tokenizer and configuration of an encoder's folder, its pooling and `max_length`."""
    digest = hashlib.sha256(f"{POOLING}, {max_length}\n".encode())
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise ValueError(f"{folder} holds no weights (*.safetensors or *.bin); name the folder of a saved model")
    rest = [folder / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")]
    for path in [*weights, *(path for path in rest if path.is_file())]:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
