"""Adapters in a training run: which weights learn, the merged model of the bundle, and the folder of adapters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from clv import bundle as bundles
from clv.forecast.predictor import Predictor
from clv.models.adapters import methods
from clv.models.backbones import encoders
from clv.models.config import AdapterConfig
from clv.models.model import CustomerModel
from clv.train import estimate, export, fitting, loop, trainer
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.examples.loader import steps_of
from clv.train.fitting import Dataset, Setup
from clv.train.optimizers import make_optimizer

pytest.importorskip("peft")

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "adalora": {"rank": 2},
    "ia3": {},
    "prefix": {"length": 3},
    "bottleneck": {"width": 5},
}
METHODS: list[Any] = list(OPTIONS)


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
    model = replace(tiny.model, backbone=backbone, adapters=AdapterConfig(method=method, **OPTIONS[method]))
    rate = replace(tiny.optimizer, learning_rate=0.01, backbone_share=1.0)
    return replace(tiny, model=model, optimizer=rate, **changes)


def trained(config: TrainConfig, setup: Setup, shop: Dataset) -> CustomerModel:
    model = setup.model(config)
    engine = make_engine(model, loop.sum_loss(config, True), config, torch.device("cpu"))
    for step in list(steps_of(setup.source(shop, config).epoch(0), config, 0, 1, 0))[:4]:
        engine.train_step(step.batches, 0.02, step.number / 4)
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_fresh_adapters_other_than_prefixes_change_nothing(
    method: str, tiny: TrainConfig, source: str, setup: Setup, shop: Dataset
) -> None:
    config = settings(tiny, source, method)
    plain = setup.model(replace(config, model=config.model.without_adapters)).eval()
    batch = setup.source(shop, config).epoch(0).batch(torch.arange(24).numpy())
    with torch.inference_mode():
        x = plain.embedding(batch)
        before, after = plain.backbone(x, batch.mask), setup.model(config).eval().backbone(x, batch.mask)
    # Learned keys take their share of the attention, whatever they say.
    assert torch.equal(before, after) == (method != "prefix")


@pytest.mark.parametrize("method", METHODS)
def test_only_adapters_and_what_lies_outside_the_backbone_learn(
    method: str, tiny: TrainConfig, source: str, setup: Setup, shop: Dataset
) -> None:
    config = settings(tiny, source, method)
    before = setup.model(replace(config, model=config.model.without_adapters)).state_dict()
    model = trained(config, setup, shop)
    after = model.state_dict()
    backbone = {name for name in after if name.startswith("backbone.")}
    fresh = {name for name in backbone if methods.is_adapter(name)}
    assert fresh
    frozen = {name: found for name in backbone - fresh if (found := name.replace(".base_layer", "")) in before}
    assert set(frozen.values()) == {name for name in before if name.startswith("backbone.")}
    for name, found in frozen.items():
        assert torch.equal(after[name], before[found]), name
    optimizer = make_optimizer(config.optimizer, model)
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    outside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("backbone."))
    # Two layers of width 32, 64 hidden units.
    assert (
        count - outside
        == {
            "lora": 2 * 2 * 4 * (32 + 32),  # rank 4 on two square projections
            "adalora": 2 * 3 * (4 * (32 + 32 + 1) + 2 * (32 + 64 + 1)),  # rank 3 at first, on six matrices
            "ia3": 2 * (32 + 32 + 32 + 64),  # vectors, the last of the wide layer
            "prefix": 2 * 2 * 3 * 32,  # three keys and three values
            "bottleneck": 2 * 2 * (32 * 5 + 5 + 5 * 32 + 32),
        }[method]
    )
    assert all(torch.isfinite(after[name]).all() for name in fresh)
    assert estimate.size_of(config, setup.assembler.space, 2) == estimate.Size(
        sum(p.numel() for p in model.parameters()), count
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_merged_model_has_the_outputs_of_the_adapters_and_their_folder_restores_them(
    method: str, tiny: TrainConfig, source: str, setup: Setup, shop: Dataset, tmp_path: Path
) -> None:
    config = settings(tiny, source, method)
    model = trained(config, setup, shop)
    batch = setup.source(shop, config).epoch(3).batch(torch.arange(24).numpy())
    with torch.inference_mode():
        unmerged, untouched = (
            model(batch),
            setup.model(replace(config, model=config.model.without_adapters)).eval()(batch),
        )
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    served = trainer.load_model(setup, config, trainer.merged(setup, config, weights))
    stays = method in ("prefix", "bottleneck")
    assert any(methods.is_adapter(name) for name in served.state_dict()) == stays
    methods.save(tmp_path / "adapters", config.model.adapters, config.model.backbone, methods.trained_tensors(weights))
    restored = setup.model(replace(config, model=config.model.without_adapters, seed=config.seed + 1))
    methods.load(restored, tmp_path / "adapters")
    found = restored.state_dict()
    assert all(torch.equal(found[name], value) for name, value in methods.trained_tensors(weights).items())
    with torch.inference_mode():
        assert torch.equal(restored.eval()(batch).z, unmerged.z)
        torch.testing.assert_close(served.eval()(batch).value, unmerged.value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(served(batch).z, unmerged.z, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(untouched.z, unmerged.z, atol=1e-3)
    size = sum(path.stat().st_size for path in (tmp_path / "adapters").iterdir())
    assert size < 0.6 * sum(t.nbytes for t in weights.values())


def test_a_run_returns_plain_weights_and_the_adapters_by_themselves(
    tiny: TrainConfig, source: str, shop: Dataset, cutoff: int
) -> None:
    config = settings(tiny, source, "lora", epochs=1)
    phases = fitting.plan(shop, cutoff, config)
    fitted = loop.finish(trainer.train(shop, phases, config))
    plain = phases.final.model(replace(config, model=config.model.without_adapters)).state_dict()
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


@pytest.mark.parametrize("method", ["lora", "prefix", "bottleneck"])
def test_a_bundle_scores_with_adapters_merged_or_as_a_part_of_it(
    method: str, tiny: TrainConfig, source: str, shop: Dataset, cutoff: int, shop_histories: pa.Table, tmp_path: Path
) -> None:
    config = settings(tiny, source, method, epochs=1)
    phases = fitting.plan(shop, cutoff, config)
    fitted = loop.finish(trainer.train(shop, phases, config))
    fitted = replace(fitted, adjustment=replace(fitted.adjustment, blend_purchase=(1.0, 1.0), blend_value=(1.0, 1.0)))
    facts = {"name": "shop", "currency": "GBP", "timezone": "Europe/London", "value": "gross"}
    facts |= {"horizons": [30, 90], "discount_rate_annual": 0.1}
    made = export.to_bundle(shop, phases, config, fitted, facts, [])
    bundles.save(made, tmp_path / "bundle")
    predictor = Predictor(tmp_path / "bundle")
    samples = phases.final.assembler.assemble(shop.histories, cutoff).samples
    model = trainer.load_model(phases.final, config, fitted.weights).eval()
    with torch.inference_mode():
        batch = samples.batch(torch.arange(24).numpy())
        assert torch.equal(predictor._model(batch).z, model(batch).z)
    scores = predictor.predict(shop_histories, cutoff).to_pandas()
    stay = [name for name in made.weights if methods.is_adapter(name)]
    assert bool(stay) == (method != "lora")
    for name in stay:
        made.weights[name][:] = 1
    other = Predictor(made).predict(shop_histories, cutoff).to_pandas()
    assert ((other["p_purchase"] / scores["p_purchase"] - 1).abs().max() > 1e-5) == bool(stay)


def test_averaged_weights_hold_the_ranks_of_the_budget(
    tiny: TrainConfig, source: str, shop: Dataset, cutoff: int
) -> None:
    config = settings(tiny, source, "adalora", epochs=1)
    phases = fitting.plan(shop, cutoff, config)
    fitted = loop.finish(trainer.train(shop, phases, config))
    values = [t for name, t in fitted.adapters.items() if ".lora_E." in name]
    assert [len(t) for t in values] == [3] * 12
    assert sum(int(t.count_nonzero()) for t in values) == 2 * 12
    model = phases.final.model(config)
    model.load_state_dict(fitted.adapters, strict=False)
    methods.merge(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fitted.weights[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_adapters_that_would_do_nothing_are_refused(tiny: TrainConfig, source: str) -> None:
    for method in METHODS:
        with pytest.raises(ValueError, match=f"{method} freezes the backbone, which is random without model"):
            replace(tiny, model=replace(tiny.model, adapters=AdapterConfig(method=method)))
        gru = replace(tiny.model.backbone, architecture="gru")
        with pytest.raises(ValueError, match=f"{method} needs a bert or gpt2 backbone, not gru"):
            replace(tiny, model=replace(tiny.model, backbone=gru, adapters=AdapterConfig(method=method)))
        config = settings(tiny, source, method)
        with pytest.raises(ValueError, match=f"{method} would do nothing without model.use_sequence"):
            replace(config, model=replace(config.model, use_sequence=False))


def test_ranks_are_allotted_only_where_gradients_are_whole(tiny: TrainConfig, source: str, setup: Setup) -> None:
    config = settings(tiny, source, "adalora")
    for stage in (1, 2, 3):
        with pytest.raises(
            ValueError, match=f"engine.zero_stage {stage} shards: use zero_stage 0, or engine.kind torch"
        ):
            config.with_engine(kind="deepspeed", zero_stage=stage)
    half = config.with_engine(kind="deepspeed", zero_stage=0, precision="bf16")
    with pytest.raises(
        ValueError, match=r"DeepSpeed keeps copies in half precision: use precision fp32, or engine\.kind"
    ):
        make_engine(setup.model(half), loop.sum_loss(half, True), half, torch.device("cpu"))
    whole = config.with_engine(kind="deepspeed", zero_stage=0)
    assert {tried.engine.stage for tried in estimate.candidates(whole)} == {0}
