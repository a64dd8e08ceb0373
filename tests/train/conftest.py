"""A small simulated shop and a very small training run."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from clv.data import histories, synth
from clv.data.clock import Clock
from clv.data.histories import Histories
from clv.data.windows import Value
from clv.models.encoders import BackboneConfig
from clv.models.features import Items
from clv.models.model import ModelConfig
from clv.train.config import EngineConfig, TrainConfig
from clv.train.fit import Shop

MakeShop = Callable[..., Shop]
CLOCK = Clock("Europe/London")


@pytest.fixture(scope="session")
def shop_histories() -> pa.Table:
    events = synth.simulate(200, "2023-01-01", "2024-07-01", seed=3, timezone="Europe/London").events
    return histories.build(events, CLOCK)


@pytest.fixture(scope="session")
def make_shop(shop_histories: pa.Table) -> MakeShop:
    def build(table: pa.Table = shop_histories, value: Value = "gross", horizons: tuple[int, ...] = (30, 90)) -> Shop:
        end = CLOCK.parse("2024-07-01")
        return Shop(Histories.from_table(table), CLOCK, value, horizons, Items.empty(), end)

    return build


@pytest.fixture(scope="session")
def shop(make_shop: MakeShop) -> Shop:
    return make_shop()


@pytest.fixture(scope="session")
def cutoff() -> int:
    return CLOCK.parse("2024-04-01")


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """Plain torch, one layer of width 32, two epochs of eight steps at most, no dropout."""
    backbone = BackboneConfig(width=32, num_layers=1, num_heads=2, intermediate=64, max_tokens=16, dropout=0.0)
    return TrainConfig(
        model=ModelConfig(backbone=backbone, hidden=32, dropout=0.0),
        engine=EngineConfig(kind="torch"),
        epochs=2,
        samples_per_epoch=512,
        batch_size=64,
        token_dropout=0.0,
        num_origins=6,
        seed=1,
    )
