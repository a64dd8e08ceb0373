"""Pretraining on the cluster: the datasets of a run, and the log line of an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from clv.cluster.pretraining import describe_epoch, read_datasets
from clv.data.dataset import PreparedDataset
from clv.train.config import TrainConfig
from tests.prepared_shop import prepared_shop


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Histories of a small shop and of a larger one, two shards each."""
    folders = []
    for name, customers in (("small", 15), ("large", 45)):
        folder = prepared_shop(tmp_path_factory.mktemp(name), 2, customers, "2023-01-01", "2023-07-01", seed=1)
        spec = folder / "spec.yaml"
        spec.write_text(spec.read_text().replace("name: simulated", f"name: {name}"))
        folders.append(folder)
    return folders


def test_one_large_shop_makes_the_run_read_every_shop_by_shards(shops: list[Path]) -> None:
    small, large = (PreparedDataset.open(folder).manifest for folder in shops)
    config = TrainConfig(memory_events=small["num_tokens"])
    datasets = read_datasets(shops, config)
    assert [dataset.name for dataset in datasets] == ["small", "large"]
    assert [len(dataset.shards) for dataset in datasets] == [2, 2]
    assert len(datasets[0].histories) == small["num_customers"]
    assert 0 < len(datasets[1].histories) < large["num_customers"]
    # Shops that all fit in memory are read whole.
    (alone,) = read_datasets(shops[:1], config)
    assert not alone.shards


def test_a_shop_that_is_given_twice_is_refused(shops: list[Path]) -> None:
    with pytest.raises(ValueError, match="dataset 'large' is given twice; name each histories folder once"):
        read_datasets([*shops, shops[1]], TrainConfig())


def test_the_line_of_an_epoch_has_the_loss_of_each_objective() -> None:
    row = {"epoch": 2, "loss": 1.23456, "masked": 0.5, "coles": 0.25, "seconds": 3.4, "waiting": 0.1}
    assert describe_epoch(row) == "pretrain, epoch 2: loss 1.2346 (masked 0.500, coles 0.250), 3 s"
