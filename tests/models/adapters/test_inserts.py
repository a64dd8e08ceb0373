"""Prefix and bottleneck adapters: against attention with more keys and values, and a residual network, by hand."""

from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, scaled_dot_product_attention

from clv.models.adapters.inserts import Bottleneck, Prefix
from clv.models.adapters.methods import inject
from clv.models.backbones import encoders
from clv.models.config import AdapterConfig, BackboneConfig

WIDTH, HEADS, TOKENS, LENGTH = 32, 2, 7, 3
WHOLE = torch.ones(4, TOKENS)
SHORT = torch.arange(TOKENS).expand(4, -1) < torch.tensor([[7], [5], [3], [1]])


def prefixed(architecture: Any) -> Any:
    """A backbone of two layers with large random prefixes."""
    config = BackboneConfig(
        architecture=architecture, width=WIDTH, num_layers=2, num_heads=HEADS, intermediate=64, dropout=0.0
    )
    torch.manual_seed(0)
    model: Any = torch.nn.Module()
    model.backbone = encoders.build(config)
    inject(model, AdapterConfig(method="prefix", length=LENGTH), config)
    for module in model.modules():
        if isinstance(module, Prefix):
            torch.nn.init.normal_(module.adapter_keys)
            torch.nn.init.normal_(module.adapter_values)
    return model.eval().backbone


@pytest.mark.parametrize("mask", [WHOLE, SHORT.float()], ids=["whole", "short"])
def test_a_prefix_adds_keys_and_values_to_the_attention(mask: torch.Tensor) -> None:
    backbone = prefixed("bert")
    module = backbone.model.encoder.layer[0].attention.self
    seen: dict[str, torch.Tensor] = {}
    module.register_forward_hook(lambda m, given, out: seen.update(x=given[0], out=out[0]))
    backbone(torch.randn(4, TOKENS, WIDTH), mask)
    own = module.base_layer
    learned = {own.key: module.adapter_keys, own.value: module.adapter_values}

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    keys, values = (
        heads(torch.cat([learned[layer].expand(4, -1, -1), layer(seen["x"])], 1)) for layer in (own.key, own.value)
    )
    may = torch.cat([torch.ones(4, LENGTH), mask], 1).bool()[:, None, None]
    expected = scaled_dot_product_attention(heads(own.query(seen["x"])), keys, values, may).transpose(1, 2).flatten(2)
    torch.testing.assert_close(seen["out"], expected)
    assert not torch.allclose(expected, own(seen["x"], attention_mask=may[..., LENGTH:])[0], atol=1e-2)


@pytest.mark.parametrize("mask", [WHOLE, SHORT.float()], ids=["whole", "short"])
def test_a_causal_backbone_with_a_prefix_does_not_look_ahead(mask: torch.Tensor) -> None:
    backbone = prefixed("gpt2")
    x = torch.randn(4, TOKENS, WIDTH)
    later = x.clone()
    later[:, 4:] = torch.randn(4, TOKENS - 4, WIDTH)
    before, after = backbone(x, mask), backbone(later, mask)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[0, 4:], before[0, 4:], atol=1e-2)
    for module in backbone.modules():
        if isinstance(module, Prefix):
            torch.nn.init.zeros_(module.adapter_values)
    # The prefixes change the states of all tokens, also of the first.
    assert (backbone(x, mask)[:, :4] - before[:, :4]).abs().amax(2).min() > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_states_of_a_row_do_not_depend_on_padding_in_other_rows(architecture: str) -> None:
    backbone, x = prefixed(architecture), torch.randn(4, TOKENS, WIDTH)
    torch.testing.assert_close(backbone(x, WHOLE)[0], backbone(x, SHORT.float())[0])


def test_a_fresh_bottleneck_changes_nothing_and_a_trained_one_adds_its_network() -> None:
    torch.manual_seed(0)
    projection = torch.nn.Linear(64, WIDTH)
    module, x = Bottleneck(projection, WIDTH, 5), torch.randn(6, 64)
    assert torch.equal(module(x), projection(x))
    torch.nn.init.normal_(module.adapter_up.weight)
    out = projection(x)
    down, up = module.adapter_down, module.adapter_up
    expected = out + gelu(out @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(module(x), expected)
    assert not torch.allclose(expected, out, atol=1e-2)
