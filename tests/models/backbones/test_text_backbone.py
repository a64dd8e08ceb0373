"""Text backbone: the states of the checkpoint for every family of encoders, and errors for other checkpoints."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from clv.models.backbones import text_backbone
from clv.models.backbones.text_backbone import TextBackbone, backbone_config
from clv.models.config import ModelConfig
from clv.models.inputs.text_history import TextSpace
from clv.models.model import CustomerModel
from clv.models.pretraining.transfer import describe, warm_start

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "electra": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
}


def checkpoint(folder: Path, tokenizer: str, family: str, **more: Any) -> str:
    """A model of the family with random weights beside the tokenizer of another folder."""
    shutil.copytree(tokenizer, folder)
    (folder / "model.safetensors").unlink()
    config = transformers.AutoConfig.for_model(
        family, vocab_size=120, max_position_embeddings=64, **SIZES.get(family, {}), **more
    )
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", SIZES)
def test_states_are_those_of_the_checkpoint_for_every_family(family: str, text_checkpoint: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / family, text_checkpoint, family)
    shape = backbone_config(source, 32)
    assert (shape.width, shape.num_layers, shape.num_heads, shape.intermediate) == (16, 2, 2, 24)
    backbone = TextBackbone(text_backbone.checkpoint_config(source), shape)
    sha256 = text_backbone.load_weights(backbone, source)
    reference = transformers.AutoModel.from_pretrained(source).eval()
    pieces = torch.randint(5, 60, (3, 20))
    mask = (torch.arange(20) < torch.tensor([[20], [13], [4]])).float()
    with torch.no_grad():
        found = backbone.eval()(pieces, mask)
        for row, length in enumerate((20, 13, 4)):
            alone = reference(input_ids=pieces[row : row + 1, :length]).last_hidden_state[0]
            torch.testing.assert_close(found[row, :length], alone, atol=2e-6, rtol=1e-5)
    # Every tensor was loaded: another one gives another hash, and the gradient reaches all.
    backbone.train()(pieces, mask).square().sum().backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]
    with torch.no_grad():
        next(reference.parameters()).add_(1e-3)
    reference.save_pretrained(source)
    assert text_backbone.load_weights(backbone, source) != sha256


def test_dropout_is_that_of_the_settings(text_checkpoint: str) -> None:
    own = text_backbone.checkpoint_config(text_checkpoint)
    pieces, mask = torch.randint(5, 60, (2, 9)), torch.ones(2, 9)
    for dropout, equal in ((0.0, True), (0.4, False)):
        backbone = TextBackbone(own, replace(backbone_config(text_checkpoint, 32), dropout=dropout)).train()
        assert torch.equal(backbone(pieces, mask), backbone(pieces, mask)) == equal


def test_other_models_and_texts_of_a_wrong_length_are_refused(text_checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes texts of 16 to 96 word pieces, not 97"):
        backbone_config(text_checkpoint, 97)
    with pytest.raises(ValueError, match="takes texts of 16 to 96 word pieces, not 8"):
        backbone_config(text_checkpoint, 8)
    bart = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    source = checkpoint(tmp_path / "bart", text_checkpoint, "bart", **bart, **heads)
    with pytest.raises(ValueError, match="is an encoder with a decoder: give an encoder such as BERT"):
        backbone_config(source, 32)
    bare = checkpoint(tmp_path / "bare", text_checkpoint, "bert")
    vocabulary = transformers.AutoTokenizer.from_pretrained(text_checkpoint).backend_tokenizer
    transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary).save_pretrained(bare)
    with pytest.raises(ValueError, match=r"its tokenizer has no \[CLS\], \[SEP\] and \[PAD\]; give a BERT-like one"):
        backbone_config(bare, 32)
    with pytest.raises(ValueError, match="is neither a folder nor a hub id that can be fetched"):
        backbone_config(str(tmp_path / "nowhere"), 32)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "backbone.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no config.json; name the folder of a saved model"):
        backbone_config(str(tmp_path / "ours"), 32)


@pytest.fixture(scope="module")
def model(shop, text_checkpoint: str) -> CustomerModel:
    shape = backbone_config(text_checkpoint, 40)
    space = replace(shop.space, text=TextSpace.fit(shop.past, shop.items.keys, None, shape))
    made = CustomerModel(ModelConfig(encoder="text", backbone=shape, hidden=16, use_wide=False), space, 2)
    line = describe(space, shape, text_checkpoint)
    assert warm_start(made, space, shape, text_checkpoint)[:12] in line
    assert line.endswith("0 items with a name, 0 distinct names")
    return made.eval()


def test_the_customer_vector_uses_the_first_state_and_the_mean(shop, model: CustomerModel) -> None:
    space = model_space(shop, model)
    samples = replace(shop.samples, tokens=space.tokens(shop.past, 40))
    batch = samples.batch(np.arange(12))
    with torch.no_grad():
        found = model.encode(batch)
        for row in range(12):
            length = int(batch.mask[row].sum())
            x = model.backbone(batch.codes[row : row + 1, :length, 0], torch.ones(1, length))[0]
            wanted = model.activation(model.pool(torch.cat([x.mean(0), x[0]])))
            torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-4)
    assert found.std(0).max() > 1e-3


def model_space(shop, model: CustomerModel):
    text = TextSpace.fit(shop.past, shop.items.keys, None, model.config.backbone)
    return replace(shop.space, text=text)


def test_an_output_does_not_depend_on_the_other_rows_of_the_batch(shop, model: CustomerModel) -> None:
    space = model_space(shop, model)
    samples = replace(shop.samples, tokens=space.tokens(shop.past, 40))
    with torch.no_grad():
        together = model(samples.batch(np.arange(20)))
        for row in (0, 7, 19):
            alone = model(samples.batch(np.array([row])))
            torch.testing.assert_close(together.value[row], alone.value[0], atol=1e-6, rtol=1e-5)
