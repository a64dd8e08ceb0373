"""Settings of the model: options that would do nothing are refused, and bundles without adapters are read."""

from dataclasses import replace
from typing import Any

import pytest

from clv.bundle import plain_json
from clv.models.config import AdapterConfig, BackboneConfig, ModelConfig


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "lora", "rank": 0}, r"adapters\.rank must be positive, not 0"),
        ({"method": "lora", "alpha": -1.0}, r"adapters\.alpha must be positive, not -1"),
        ({"method": "prefix", "length": 0}, r"adapters\.length must be positive, not 0"),
        ({"method": "ia3", "rank": 4}, r"adapters\.rank 4 needs adapters\.method lora or adalora, not ia3"),
        ({"method": "prefix", "width": 4}, r"adapters\.width 4 needs adapters\.method bottleneck, not prefix"),
        ({"method": "lora", "length": 4}, r"adapters\.length 4 needs adapters\.method prefix, not lora"),
        ({"rank": 4}, r"adapters\.rank 4 needs adapters\.method lora or adalora, not None"),
    ],
)
def test_options_of_other_methods_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**given)


def test_adapters_need_a_pretrained_bert_or_gpt2() -> None:
    adapters = AdapterConfig(method="prefix")
    with pytest.raises(
        ValueError, match=r"prefix freezes the backbone, which is random without model\.backbone\.pretrained"
    ):
        adapters.check_backbone(BackboneConfig())
    with pytest.raises(ValueError, match="prefix needs a bert or gpt2 backbone, not gru"):
        adapters.check_backbone(BackboneConfig(architecture="gru", pretrained="x"))
    adapters.check_backbone(BackboneConfig(pretrained="x"))
    AdapterConfig().check_backbone(BackboneConfig())


def test_a_bundle_keeps_the_adapters_that_cannot_be_merged() -> None:
    prefix = ModelConfig(adapters=AdapterConfig(method="prefix"))
    merged = ModelConfig.from_json(plain_json(prefix.with_merged_adapters))
    assert merged.adapters == AdapterConfig(method="prefix", length=8)
    assert replace(prefix, adapters=AdapterConfig(method="lora")).with_merged_adapters == ModelConfig()
    assert prefix.without_adapters == ModelConfig()


def test_bundles_from_before_adapters_have_none() -> None:
    plain = plain_json(ModelConfig(hidden=7))
    del plain["adapters"]
    assert ModelConfig.from_json(plain) == ModelConfig(hidden=7)


def test_a_model_without_heads_or_without_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.ensemble_size must be at least 1, not 0"):
        ModelConfig(ensemble_size=0)
    with pytest.raises(ValueError, match=r"use_wide and model\.use_sequence are both off: switch one on"):
        ModelConfig(use_wide=False, use_sequence=False)
