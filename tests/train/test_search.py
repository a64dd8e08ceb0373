import pytest

from clv.train import search
from clv.train.config import TrainConfig
from clv.train.search import Choice, SearchRange


def test_bounds_lie_around_what_is_given() -> None:
    config = TrainConfig()
    space = search.space(search.NAMES, config)
    assert set(space) == set(search.NAMES)
    rate = space["learning_rate"]
    assert isinstance(rate, SearchRange)
    assert rate.low < config.optimizer.learning_rate < rate.high
    assert space["batch_size"] == Choice((64, 128, 256))
    assert space["epochs"] == Choice((3, 6, 12))


def test_every_choice_is_a_configuration() -> None:
    config = TrainConfig()
    setting = {"learning_rate": 0.1, "batch_size": 32, "epochs": 3, "weight_decay": 0.5, "dropout": 0.2, "size": "2x64"}
    assert set(setting) == set(search.NAMES)
    found = search.chosen(config, setting)
    assert (found.optimizer.learning_rate, found.optimizer.weight_decay) == (0.1, 0.5)
    assert (found.batch_size, found.epochs, found.model.dropout) == (32, 3, 0.2)
    assert (found.model.backbone.width, found.model.backbone.num_layers) == (64, 2)
    assert search.chosen(config, {}) == config
    for size in search.SIZES:
        backbone = search.chosen(config, {"size": size}).model.backbone
        assert f"{backbone.num_layers}x{backbone.width}" == size
        assert backbone.width % backbone.num_heads == 0


def test_what_cannot_be_tuned_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'colour' cannot be tuned: choose among learning_rate, batch_size"):
        search.space(["colour"], TrainConfig())
    with pytest.raises(ValueError, match="nothing is to be tuned"):
        search.space([], TrainConfig())
