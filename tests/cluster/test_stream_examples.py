"""Samples that Ray Data makes are those made here, in the same order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clv.cluster import training
from clv.data.dataset import PreparedDataset
from clv.train.examples.in_memory import ShardOrigins
from clv.train.examples.on_storage import Piece, load_here


def test_ray_data_yields_what_the_loader_does_in_order(ray_cluster: None, task: Any) -> None:
    config = replace(task.config, loader="ray")
    shop = training.read_dataset(task.histories, config=config)
    source = task.phases.final.source(shop, config)
    assert isinstance(source, ShardOrigins)
    assert source.load is training.stream_examples
    # The first are the slowest to make.
    pieces = [Piece(source.shards[i % 2], num, (1, i)) for i, num in enumerate([4_000, 8, 8, 16, 8, 8])]
    here, there = list(load_here(source.assemble, pieces)), list(training.stream_examples(source.assemble, pieces))
    assert [len(samples) for samples in there] == [piece.num for piece in pieces]
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a.wide, b.wide)
        np.testing.assert_array_equal(a.tokens.codes, b.tokens.codes)
        np.testing.assert_array_equal(a.value, b.value)


@pytest.mark.slow
def test_a_group_of_workers_is_fed_by_ray_data_as_by_the_loader(ray_cluster: None, task: Any, tmp_path: Path) -> None:
    curves = []
    for loader in ("shards", "ray"):
        fitted = task.train(tmp_path / loader, lambda line: None, loader=loader, epochs=1)
        curves.append([row["loss"] for row in fitted.history])
    assert curves[0] == curves[1]


def test_a_process_holds_a_share_of_the_customers_where_not_all_events_fit(task: Any) -> None:
    histories, config = task.histories, task.config
    whole, num_tokens = training.read_dataset(histories), PreparedDataset.open(histories).manifest["num_tokens"]
    assert not training.read_dataset(histories, config=config).shards
    some = training.read_dataset(histories, config=replace(config, memory_events=num_tokens * 3 // 4))
    assert 0 < len(some.histories) < len(whole.histories)
    assert len(some.shards) == 2
    everything = training.read_dataset(histories, config=replace(config, memory_events=1, loader="memory"))
    assert len(everything.histories) == len(whole.histories)
