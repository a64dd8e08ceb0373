"""The plan against what is counted: bytes of shapes its constants were not fitted to, and what it advises."""

from dataclasses import replace

import pytest

from benchmarks import plan as counted
from clv.models.model import CustomerModel
from clv.train import estimate
from clv.train.config import TrainConfig
from clv.train.estimate import GIB
from clv.train.fitting import Setup
from ray_jobs.options import read_preset


def test_weights_are_those_of_the_model(setup: Setup, tiny: TrainConfig) -> None:
    model = CustomerModel(tiny.model, setup.assembler.space, 2)
    size = estimate.size_of(tiny, setup.assembler.space, 2)
    assert size.total == sum(p.numel() for p in model.parameters())
    assert size.trained == sum(p.numel() for p in model.parameters() if p.requires_grad) < size.total


def test_the_large_preset_has_the_weights_of_bert_large(setup: Setup) -> None:
    size = estimate.size_of(read_preset("large"), setup.assembler.space, 2)
    # 24 layers of 12.6 million; BERT-large's 335 million less its words.
    assert 302e6 < size.total < 312e6


@pytest.mark.parametrize("case", [counted.CASES[0], counted.CASES[2]], ids=["kept", "recomputed"])
def test_predicted_bytes_are_near_the_counted(case: counted.Case) -> None:
    ((_, told, held, peak),) = counted.compared([case])
    assert told.weights + told.optimizer + told.average == pytest.approx(held, rel=0.01)
    assert told.total == pytest.approx(held + peak, rel=0.1)


def test_stages_share_what_they_say_and_precision_halves_what_it_can(setup: Setup) -> None:
    config = read_preset("large")
    size = estimate.size_of(config, setup.assembler.space, 2)

    def of(stage: int, precision: str) -> estimate.Memory:
        return estimate.memory(
            size, config, workers=8, stage=stage, precision=precision, tokens=4096, fused_attention=True
        )

    n = size.trained
    assert [of(stage, "bf16").optimizer / n for stage in range(4)] == pytest.approx([12, 1.5, 1.5, 1.5])
    assert [of(stage, "bf16").gradients / n for stage in range(4)] == pytest.approx([2, 2, 0.25, 0.25])
    assert of(3, "bf16").weights == pytest.approx(of(0, "bf16").weights / 8)
    assert of(0, "fp32").weights == 2 * of(0, "bf16").weights
    assert of(3, "fp32").passing == 2 * of(3, "bf16").passing
    assert of(1, "bf16").average == 4 * size.total


def test_the_smallest_setting_fits_and_the_next_larger_does_not(setup: Setup) -> None:
    config = replace(read_preset("large"), batch_size=64)
    size = estimate.size_of(config, setup.assembler.space, 2)
    chosen = {gib: estimate.fitting(size, config, 8, "bf16", gib * GIB) for gib in (80, 6, 4, 0.5)}
    assert chosen[80] == config.with_engine(zero_stage=1)
    assert chosen[0.5] is None
    for gib in (6, 4):
        found = chosen[gib]
        assert found is not None, gib
        order = list(estimate.candidates(config))
        before = order[: order.index(found)]
        assert before
        tokens = estimate.tokens_of_micro_batch(before[-1], 8)
        too_much = estimate.memory(
            size, before[-1], workers=8, stage=before[-1].engine.stage, precision="bf16", tokens=tokens,
            fused_attention=True,
        )  # fmt: skip
        assert too_much.total > 0.9 * gib * GIB
