"""Settings from a YAML file: names are flat, types are checked, and an unknown name is refused with the closest one."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tyro.conf import OmitArgPrefixes

from clv.train.config import TrainConfig
from clv.train.settings import flatten, overlay, read_json, read_yaml, settings_of


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    origin: str = ""
    flat: OmitArgPrefixes[Inner] = field(default_factory=Inner)
    shop: Inner = field(default_factory=Inner)


def test_a_name_is_that_of_the_option_with_underscores() -> None:
    assert list(settings_of(Outer)) == ["origin", "size", "shop.size"]
    assert settings_of(TrainConfig)["peft_rank"].path == ("model", "adapters", "rank")


def test_no_two_settings_of_a_training_run_have_one_name() -> None:
    def count(config: Any) -> int:
        values = [getattr(config, name) for name in config.__dataclass_fields__]
        return sum(count(value) if hasattr(value, "__dataclass_fields__") else 1 for value in values)

    assert len(settings_of(TrainConfig)) == count(TrainConfig())


def test_values_of_a_file_replace_those_of_the_dataclass() -> None:
    config = TrainConfig()
    given = {"learning_rate": 1, "weight_decay": "1e-1", "width": 64, "epochs": 7, "optimizer": "sgd"}
    found = overlay(config, given, "best.yaml")
    assert (found.optimizer.learning_rate, found.optimizer.weight_decay, found.epochs) == (1.0, 0.1, 7)
    assert found.optimizer.name == "sgd"
    assert found.model.backbone == replace(config.model.backbone, width=64)
    assert found.engine == config.engine


def test_an_unquoted_date_is_read_as_its_text() -> None:
    assert overlay(Outer(), yaml.safe_load("origin: 2024-01-01"), "o.yaml").origin == "2024-01-01"


def test_a_whole_configuration_survives_its_file(tmp_path: Path) -> None:
    config = replace(TrainConfig(), epochs=9).with_engine(zero_stage=3, deepspeed={"aio": {"x": 1}})
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(flatten(config)))
    assert overlay(TrainConfig(), read_yaml(tmp_path / "best.yaml"), "best.yaml") == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, r"best\.yaml: epoch: unknown setting \(did you mean 'epochs'\?\)"),
        ({"quantum": 3}, r"best\.yaml: quantum: unknown setting \(--help lists all settings\)"),
        ({"epochs": "many"}, r"best\.yaml: epochs 'many': Input should be a valid integer"),
        ({"architecture": "cnn"}, r"best\.yaml: architecture 'cnn': Input should be 'bert'"),
        ({"epochs": 0}, r"best\.yaml: epochs must be at least 1, not 0"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(TrainConfig(), given, "best.yaml")


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_a_file_of_something_else_is_refused(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "settings"
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"settings must hold .*, not list"):
        read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"settings is not (YAML|JSON)"):
        read(path)
