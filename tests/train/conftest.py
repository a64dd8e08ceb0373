"""A small simulated shop and a very small training run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from clv.data import histories
from clv.data.clock import Clock
from clv.data.cutoff import Value
from clv.data.histories import Histories
from clv.models.backbones import encoders
from clv.models.config import BackboneConfig, ModelConfig
from clv.models.inputs.feature_space import Items
from clv.simulate import small
from clv.train.config import EngineConfig, TrainConfig
from clv.train.examples.in_memory import RandomOrigins
from clv.train.fitting import Dataset, Setup, prepare

MakeShop = Callable[..., Dataset]
CLOCK = Clock("Europe/London")
WORKER = Path(__file__).with_name("engine_worker.py")


@pytest.fixture(scope="session")
def shop_histories() -> pa.Table:
    events = small.simulate(200, "2023-01-01", "2024-07-01", seed=3, timezone="Europe/London").events
    return histories.build(events, CLOCK)


@pytest.fixture(scope="session")
def make_shop(shop_histories: pa.Table) -> MakeShop:
    def build(
        table: pa.Table = shop_histories, value: Value = "gross", horizons: tuple[int, ...] = (30, 90)
    ) -> Dataset:
        end = CLOCK.parse("2024-07-01")
        return Dataset(Histories.from_table(table), CLOCK, value, horizons, Items.empty(), end)

    return build


@pytest.fixture(scope="session")
def shop(make_shop: MakeShop) -> Dataset:
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


@pytest.fixture(scope="module")
def setup(shop: Dataset, cutoff: int, tiny: TrainConfig) -> Setup:
    return prepare(shop, cutoff, tiny, 30)


@pytest.fixture(scope="module")
def source(setup: Setup, shop: Dataset, tiny: TrainConfig) -> RandomOrigins:
    return setup.source(shop, tiny)


@pytest.fixture(scope="module")
def config(tiny: TrainConfig) -> TrainConfig:
    return replace(tiny, batch_size=32, epochs=1, samples_per_epoch=128, ema_decay=0.9)


@pytest.fixture(scope="module")
def folder(setup: Setup, shop: Dataset, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = setup.source(shop, config).epoch(0)
    assert len(samples) >= 96
    path = tmp_path_factory.mktemp("engine")
    content = {"space": setup.assembler.space, "samples": samples, "num_horizons": 2, "config": config}
    torch.save(content, path / "setup.pt")
    backbone: Any = encoders.build(config.model.backbone)
    backbone.model.save_pretrained(path / "bert")
    return path


@pytest.fixture(scope="session")
def run_workers() -> Callable[[Path, int, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Runs the cases on a gloo group of processes; returns what each rank wrote, by case."""

    def run(folder: Path, world_size: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (folder / f"cases-{world_size}.json").write_text(json.dumps(cases))
        root = str(Path(__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": root, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        workers = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(folder), str(world_size), str(rank)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        errors = [worker.communicate(timeout=300)[1] for worker in workers]
        for worker, error in zip(workers, errors, strict=True):
            assert worker.returncode == 0, error[-3000:]
        paths = [folder / f"result-{world_size}-{rank}.pt" for rank in range(world_size)]
        return [torch.load(path, weights_only=True) for path in paths]

    return run


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest,
    folder: Path,
    run_workers: Callable[[Path, int, list[dict[str, Any]]], list[dict[str, Any]]],
) -> Callable[[int], list[dict[str, Any]]]:
    """What each rank wrote for the module's CASES of a world size; the workers run once per size."""
    cache: dict[int, list[dict[str, Any]]] = {}

    def of_size(world_size: int) -> list[dict[str, Any]]:
        if world_size not in cache:
            cache[world_size] = run_workers(folder, world_size, request.module.CASES[world_size])
        return cache[world_size]

    return of_size
