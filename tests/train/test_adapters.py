"""Adapters in a frozen backbone: few weights learn, merged they say what they said apart, and both can be kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clv.models import adapters, encoders
from clv.models.adapters import AdapterConfig
from clv.models.model import CustomerModel
from clv.train import fit, loop, run
from clv.train.config import TrainConfig
from clv.train.engine import make_engine
from clv.train.feed import steps_of
from clv.train.fit import Setup, Shop
from clv.train.optimizers import make_optimizer

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def source(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of the tiny shape, as a folder."""
    torch.manual_seed(9)
    folder = tmp_path_factory.mktemp("bert")
    backbone: Any = encoders.build(replace(tiny.model.backbone, num_layers=2))
    backbone.model.save_pretrained(folder)
    return str(folder)


def settings(tiny: TrainConfig, source: str, method: Any, **changes: Any) -> TrainConfig:
    backbone = replace(tiny.model.backbone, num_layers=2, pretrained=source)
    model = replace(tiny.model, backbone=backbone)
    rate = replace(tiny.optimizer, learning_rate=0.01, backbone_share=1.0)
    return replace(tiny, model=model, optimizer=rate, adapters=AdapterConfig(method=method, rank=4), **changes)


def trained(config: TrainConfig, setup: Setup, shop: Shop) -> CustomerModel:
    model = setup.model(config)
    adapters.inject(model, config.adapters, config.model.backbone)
    engine = make_engine(model, loop.sum_loss(config, True), config, torch.device("cpu"))
    for step in list(steps_of(setup.source(shop, config).epoch(0), config, 0, 1, 0))[:4]:
        engine.train_step(step.batches, 0.02)
    return model.eval()


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_only_adapters_and_what_lies_outside_the_backbone_learn(
    method: str, tiny: TrainConfig, source: str, setup: Setup, shop: Shop
) -> None:
    config = settings(tiny, source, method)
    before = setup.model(config).state_dict()
    model = trained(config, setup, shop)
    after = model.state_dict()
    backbone = {name for name in after if name.startswith("backbone.")}
    fresh = {name for name in backbone if adapters.is_adapter(name)}
    assert fresh
    for name in backbone - fresh:
        assert torch.equal(after[name], before[name.replace(".base_layer", "")]), name
    optimizer = make_optimizer(config.optimizer, model)
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    outside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("backbone."))
    # Two layers of width 32: rank 4 on two square projections, or three vectors, the last of the wide layer.
    assert count - outside == (2 * 2 * 2 * 32 * 4 if method == "lora" else 2 * (32 + 32 + 32 + 64))
    assert all(torch.isfinite(after[name]).all() for name in fresh)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merged_says_what_apart_says_and_can_be_kept_apart(
    method: str, tiny: TrainConfig, source: str, setup: Setup, shop: Shop, tmp_path: Path
) -> None:
    config = settings(tiny, source, method)
    model = trained(config, setup, shop)
    batch = setup.source(shop, config).epoch(3).batch(torch.arange(24).numpy())
    with torch.inference_mode():
        unmerged, untouched = model(batch), setup.model(config).eval()(batch)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    plain = CustomerModel(config.model, setup.assembler.space, 2)
    plain.load_state_dict(run.merged(setup, config, weights))
    adapters.save(tmp_path / "adapters", config.adapters, config.model.backbone, adapters.apart(weights))
    restored = setup.model(replace(config, seed=config.seed + 1))
    adapters.load(restored, tmp_path / "adapters")
    with torch.inference_mode():
        for other in (plain.eval(), restored.eval()):
            torch.testing.assert_close(other(batch).value, unmerged.value, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(other(batch).z, unmerged.z, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(untouched.z, unmerged.z, atol=1e-3)
    size = sum(path.stat().st_size for path in (tmp_path / "adapters").iterdir())
    assert size < 0.6 * sum(t.nbytes for t in weights.values())


def test_a_whole_run_leaves_plain_weights_and_adapters_apart(
    tiny: TrainConfig, source: str, shop: Shop, cutoff: int
) -> None:
    config = settings(tiny, source, "lora", epochs=1)
    phases = fit.plan(shop, cutoff, config)
    fitted = run.train(shop, phases, config)
    plain = phases.final.model(config).state_dict()
    assert fitted.weights.keys() == plain.keys()
    changed = {
        name
        for name, value in plain.items()
        if name.startswith("backbone.") and not torch.allclose(value, fitted.weights[name], rtol=1e-5, atol=1e-7)
    }
    assert changed
    assert all(name.endswith(("query.weight", "value.weight")) for name in changed)
    assert any(".lora_A." in name for name in fitted.adapters)
    assert not any(".base_layer." in name for name in fitted.adapters)


def test_adapters_that_would_do_nothing_are_refused(tiny: TrainConfig, source: str) -> None:
    with pytest.raises(ValueError, match=r"freezes the backbone, which is random without --pretrained: give one"):
        replace(tiny, adapters=AdapterConfig(method="lora"))
    gru = replace(tiny.model, backbone=replace(tiny.model.backbone, architecture="gru"))
    with pytest.raises(ValueError, match="needs a bert or gpt2 backbone, not gru"):
        replace(tiny, model=gru, adapters=AdapterConfig(method="lora"))
    with pytest.raises(ValueError, match=r"adapters\.rank must be at least 1, not 0"):
        replace(settings(tiny, source, "lora"), adapters=AdapterConfig(method="lora", rank=0))


def test_adapters_of_another_shape_are_refused(
    tiny: TrainConfig, source: str, setup: Setup, shop: Shop, tmp_path: Path
) -> None:
    config = settings(tiny, source, "lora")
    model = trained(config, setup, shop)
    adapters.save(tmp_path, replace(config.adapters, rank=8), config.model.backbone, adapters.apart(model.state_dict()))
    with pytest.raises(ValueError, match=r"lora_A.default.weight' has shape \(8, 32\) here, \(4, 32\) there"):
        adapters.load(setup.model(config), tmp_path)
