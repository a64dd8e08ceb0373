"""DeepSpeed's JSON: what the settings and the user's own file put into it, and conflicts between the two."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from clv.models.model import CustomerModel
from clv.train import loop
from clv.train.config import EngineConfig, TrainConfig
from clv.train.engines.deepspeed_engine import deepspeed_config
from clv.train.engines.factory import make_engine
from clv.train.fitting import Setup


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage 3 conflicts with zero_stage 2"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping 0\.5 conflicts with optimizer\.clip_norm 1\.0"),
        ({"gradient_accumulation_steps": 4}, r"gradient_accumulation_steps 4 conflicts with accumulation 1"),
        ({"train_batch_size": 64}, r"train_batch_size 64 conflicts with batch_size 32"),
        ({"train_micro_batch_size_per_gpu": 64}, r"train_micro_batch_size_per_gpu 64 conflicts with batch_size 32"),
        ({"bf16": {"enabled": True}}, r"bf16\.enabled True conflicts with precision auto, which is fp32 here"),
        ({"optimizer": {"type": "Adam"}}, r"optimizer would be ignored; use optimizer, learning_rate and weight_decay"),
        ({"scheduler": {}}, r"scheduler would be ignored; use learning_rate and warmup"),
        ({"zero_optimisation": {}}, r"zero_optimisation is unknown .* \(did you mean 'zero_optimization'\?\)"),
    ],
)
def test_a_json_that_conflicts_is_refused_by_name(given: dict[str, Any], message: str, config: TrainConfig) -> None:
    chosen = replace(config, engine=EngineConfig(zero_stage=2, deepspeed=given))
    with pytest.raises(ValueError, match="DeepSpeed JSON: " + message):
        deepspeed_config(chosen, "fp32", 1)


def test_a_json_alone_may_set_the_stage_and_agree_with_the_rest(config: TrainConfig) -> None:
    given = {"zero_optimization": {"stage": 3, "contiguous_gradients": False}, "train_batch_size": 32}
    chosen = replace(config, engine=EngineConfig(deepspeed=given))
    assert chosen.engine.stage == 3
    found = deepspeed_config(chosen, "fp32", 2)
    assert found["zero_optimization"] == {"stage": 3, "contiguous_gradients": False}
    assert found["train_batch_size"] == 32


def test_a_batch_smaller_than_its_parts_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="batch_size 32 is less than workers x accumulation = 3 x 11"):
        deepspeed_config(config.with_engine(kind="deepspeed", accumulation=11), "fp32", 3)


def test_deepspeed_without_a_process_group_says_what_to_do(setup: Setup, config: TrainConfig) -> None:
    model = CustomerModel(config.model, setup.assembler.space, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"engine\.kind deepspeed needs a process group: start it through Ray"):
            make_engine(model, loop.sum_loss(config, True), config.with_engine(kind="deepspeed"), torch.device("cpu"))
