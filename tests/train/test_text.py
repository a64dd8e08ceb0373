"""A model that reads texts in the same jobs: workers and stages agree, a bundle needs neither source nor network."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from clv import bundle as bundles
from clv.data.events import stable_hash
from clv.forecast.predictor import Predictor
from clv.models.adapters import methods
from clv.models.config import ADAPTER_OPTIONS, BackboneConfig, ModelConfig
from clv.models.inputs.feature_space import Items
from clv.simulate import small
from clv.train import estimate, fitting, loop
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.export import to_bundle
from clv.train.fitting import Dataset, Setup, prepare
from clv.train.settings import overlay
from clv.train.trainer import train
from ray_jobs import pretrain
from tests.scramble import scramble_future

NUMBERS = ["p_purchase", "orders_mean", "value_mean", "value_p10", "value_p90", "clv_mean"]


@pytest.fixture(scope="module")
def shop(shop_histories: pa.Table, make_shop: Callable[..., Dataset]) -> Dataset:
    """The simulated shop with the texts of its items."""
    made = small.simulate(200, "2023-01-01", "2024-07-01", seed=3, timezone="Europe/London").items
    keys = stable_hash(pa.array(made["item_id"], pa.string()))
    none = np.zeros((len(keys), 0), np.float32)
    items = Items(keys, none, np.zeros(len(keys), np.int64), (), pa.array(made["text"], pa.string()))
    return replace(make_shop(), items=items)


@pytest.fixture(scope="module")
def source(text_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkpoint that a test may delete."""
    folder = tmp_path_factory.mktemp("encoder") / "copy"
    shutil.copytree(text_checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def config(tiny: TrainConfig, text_checkpoint: str) -> TrainConfig:
    text = {
        "encoder": "text",
        "pretrained": text_checkpoint,
        "max_tokens": 48,
        "learning_rate": 1e-3,
        "backbone_share": 0.05,
    }
    given = overlay(TrainConfig(), text, "test").with_checkpoint()
    backbone = replace(given.model.backbone, dropout=0.0)
    model = replace(given.model, backbone=backbone, hidden=32, dropout=0.0)
    return replace(tiny, model=model, batch_size=32, epochs=1, samples_per_epoch=128, ema_decay=0.9, token_dropout=0.1)


@pytest.fixture(scope="module")
def setup(shop: Dataset, cutoff: int, config: TrainConfig) -> Setup:
    return prepare(shop, cutoff, config, 30)


def test_any_number_of_workers_and_any_zero_stage_take_the_same_steps(
    setup: Setup,
    shop: Dataset,
    config: TrainConfig,
    tmp_path: Path,
    run_workers: Callable[[Path, int, list[dict[str, Any]]], list[dict[str, Any]]],
) -> None:
    content = {"space": setup.assembler.space, "samples": setup.source(shop, config).epoch(0)}
    torch.save(content | {"num_horizons": 2, "config": config}, tmp_path / "setup.pt")
    layered = {"layer_decay": 0.5, "learning_rate": 0.01}
    one = {"name": "one", "engine": {"kind": "torch"}, "optimizer": layered}
    more = [
        {"name": "two", "engine": {"kind": "torch"}, "optimizer": layered},
        {"name": "zero 1, saved and resumed", "engine": {"kind": "deepspeed", "zero_stage": 1}, "optimizer": layered},
        {"name": "zero 3, recomputed", "engine": {"kind": "deepspeed", "zero_stage": 3}, "optimizer": layered},
    ]
    more[1]["reload"] = True
    more[2]["engine"] |= {"activation_checkpointing": True}
    alone = run_workers(tmp_path, 1, [one])[0]["one"]
    found = run_workers(tmp_path, 2, more)[0]
    assert len(set(alone["losses"])) == 4
    for case in more:
        result = found[case["name"]]
        assert "error" not in result, result
        np.testing.assert_allclose(result["losses"], alone["losses"], atol=1e-5)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, atol=2e-4, rtol=1e-3)


def test_word_pieces_learn_and_the_layers_below_learn_less(setup: Setup, shop: Dataset, config: TrainConfig) -> None:
    rates = replace(config.optimizer, layer_decay=0.1, backbone_share=1.0, name="sgd")
    chosen = replace(config, optimizer=rates)
    model = setup.model(chosen)
    with torch.no_grad():
        torch.nn.init.normal_(model.pool[2].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = make_engine(model, loop.sum_loss(chosen, True), chosen, torch.device("cpu"))
    batch = setup.source(shop, chosen).epoch(0).batch(np.arange(64))
    engine.train_step([batch], 0.1)
    moved = {name: float((value - before[name]).abs().sum()) for name, value in model.state_dict().items()}
    used = torch.unique(batch.codes)
    table = "backbone.model.embeddings.word_embeddings.weight"
    change = (model.state_dict()[table] - before[table]).abs().sum(1)
    assert (change[used] > 0).any()
    assert not change[[i for i in range(len(change)) if i not in used.tolist()]].any()
    groups = {group["name"]: group["lr"] for group in engine.optimizer.param_groups}
    assert groups["backbone.002-decayed"] == pytest.approx(0.1)
    assert groups["backbone.001-decayed"] == pytest.approx(0.01)
    assert groups["backbone.000-plain"] == pytest.approx(0.001)
    assert moved["backbone.model.encoder.layer.0.output.dense.weight"] > 0


def test_a_bundle_scores_without_the_checkpoint_that_it_began_with(
    shop: Dataset, shop_histories: pa.Table, cutoff: int, config: TrainConfig, source: Path, tmp_path: Path
) -> None:
    backbone = replace(config.model.backbone, pretrained=str(source))
    config = replace(config, model=replace(config.model, backbone=backbone))
    phases = fitting.plan(shop, cutoff, config)
    fitted = loop.finish(train(shop, phases, config))
    fitted = replace(fitted, adjustment=replace(fitted.adjustment, blend_purchase=(1.0, 1.0), blend_value=(0.75, 0.75)))
    facts = {"name": "shop", "currency": "GBP", "timezone": "Europe/London", "value": "gross"}
    facts |= {"horizons": [30, 90], "discount_rate_annual": 0.1}
    made = to_bundle(shop, phases, config, fitted, facts, [])
    before = Predictor(made).predict(shop_histories, cutoff).to_pandas()
    bundles.save(made, tmp_path / "bundle")
    shutil.rmtree(source)
    predictor = Predictor(tmp_path / "bundle")
    after = predictor.predict(shop_histories, cutoff).to_pandas()
    np.testing.assert_allclose(after[NUMBERS], before[NUMBERS], rtol=1e-6)
    # What one customer gets in a request is what he gets among all.
    one = shop_histories.slice(17, 1)
    alone = predictor.predict(one, cutoff).to_pandas()
    mine = after[after["customer_id"] == one["customer_id"][0].as_py()]
    np.testing.assert_allclose(alone[NUMBERS], mine[NUMBERS], rtol=1e-5)
    # The text has its say, and nothing of the future has.
    silent = bundles.load(tmp_path / "bundle")
    for name, array in silent.weights.items():
        if name.startswith("pool.2."):
            array[:] = 0
    deaf = Predictor(silent).predict(shop_histories, cutoff).to_pandas()
    assert np.abs(deaf["p_purchase"] / after["p_purchase"] - 1).max() > 1e-4
    scrambled = scramble_future(shop_histories, cutoff, seed=1)
    again = predictor.predict(scrambled, cutoff).to_pandas()
    assert again.equals(after)


def test_the_plan_counts_the_text_encoder(setup: Setup, config: TrainConfig) -> None:
    model = setup.model(config)
    size = estimate.size_of(config, setup.assembler.space, 2)
    assert size.total == sum(p.numel() for p in model.parameters())
    assert size.trained == size.total
    assert estimate.tokens_of_micro_batch(config, 2) == 32 * 48 / 2


@pytest.mark.parametrize("method", ADAPTER_OPTIONS)
def test_adapters_fit_into_a_text_encoder(method: str, setup: Setup, config: TrainConfig) -> None:
    pytest.importorskip("peft")
    chosen = overlay(config, {"peft": method}, "test")
    model = setup.model(chosen)
    trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all(methods.is_adapter(f".{name}") for name in trained)


def test_pretraining_is_for_the_event_encoder(tmp_path: Path) -> None:
    training = replace(TrainConfig(), model=ModelConfig(encoder="text", backbone=BackboneConfig(pretrained="x")))
    options = pretrain.Options(histories=(tmp_path,), out=tmp_path / "out", training=training)
    with pytest.raises(ValueError, match="--encoder text: a text encoder is pretrained already"):
        pretrain.run(options)
