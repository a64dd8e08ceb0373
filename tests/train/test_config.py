"""Settings from a file over those of a preset: types held, unknown names refused with the one that was meant."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from clv.bundle import as_json
from clv.train.config import TrainConfig, overlaid
from ray_jobs.backtest import Options

REST: dict[str, Any] = {"histories": Path("h"), "out": Path("o"), "origins": ("2024-01-01",), "horizon_days": 30}


def test_what_a_file_sets_is_laid_over_the_rest() -> None:
    config = TrainConfig()
    given = {"optimizer": {"learning_rate": 1, "weight_decay": 0.1}, "model": {"backbone": {"width": 64}}, "epochs": 7}
    found = overlaid(config, given, "best.yaml")
    assert (found.optimizer.learning_rate, found.optimizer.weight_decay, found.epochs) == (1.0, 0.1, 7)
    assert found.model.backbone == replace(config.model.backbone, width=64)
    assert found.engine == config.engine


def test_a_whole_configuration_survives_its_file() -> None:
    config = replace(TrainConfig.preset("base"), epochs=9).with_engine(zero_stage=3, deepspeed={"aio": {"x": 1}})
    assert overlaid(TrainConfig(), yaml.safe_load(yaml.safe_dump(as_json(config))), "best.yaml") == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, r"best\.yaml: epoch: unknown setting \(did you mean 'epochs'\?\)"),
        ({"optimizer": {"rate": 3}}, r"best\.yaml: optimizer\.rate: unknown setting \(known are name, learning_rate"),
        ({"optimizer": 3}, r"best\.yaml: optimizer holds settings of its own, not 3"),
        ({"epochs": "many"}, r"best\.yaml: epochs 'many': Input should be a valid integer"),
        (
            {"model": {"backbone": {"architecture": "cnn"}}},
            r"model\.backbone\.architecture 'cnn': Input should be 'bert'",
        ),
        ({"epochs": 0}, r"best\.yaml: epochs must be at least 1, not 0"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlaid(TrainConfig(), given, "best.yaml")


def test_options_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    settings = {"optimizer": {"learning_rate": 0.5}, "epochs": 7, "engine": {"accumulation": 4, "precision": "fp32"}}
    path.write_text(yaml.safe_dump(settings))
    found = Options(config=path, epochs=2, **REST).settings()
    assert (found.epochs, found.optimizer.learning_rate) == (2, 0.5)
    assert (found.engine.accumulation, found.engine.precision) == (4, "fp32")
    assert Options(config=path, accumulation=1, **REST).settings().engine.accumulation == 1
    assert Options(**REST).settings() == TrainConfig.preset("tiny")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"best\.yaml must hold settings by name, not list"):
        Options(config=path, **REST).settings()
    path.write_text("{")
    with pytest.raises(ValueError, match=r"best\.yaml is not YAML"):
        Options(config=path, **REST).settings()
