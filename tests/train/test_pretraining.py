"""Pretraining in one process: honest pasts, several shops, resuming, and a fine-tuning that starts from it."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from clv.data.histories import Histories
from clv.models.pretraining import transfer
from clv.models.pretraining.pretrainer import Objectives
from clv.models.pretraining.transfer import SeenDataset
from clv.train import fitting, pretraining
from clv.train.config import TrainConfig
from clv.train.examples.loader import WINDOW
from clv.train.examples.on_storage import Piece
from clv.train.fitting import Dataset
from clv.train.loop import EpochDone, finish
from clv.train.pretraining import PretrainingPlan, ShardPasts
from tests.scramble import scramble_future
from tests.train.shard_files import write_shards

ALL = Objectives.from_names("masked", "next_event", "coles", "autoencoder")


@pytest.fixture(scope="module")
def config(tiny: TrainConfig) -> TrainConfig:
    return replace(tiny, samples_per_epoch=256)


@pytest.fixture(scope="module")
def planned(shop: Dataset, cutoff: int, config: TrainConfig) -> PretrainingPlan:
    return pretraining.plan([shop], [cutoff], ALL, config)


def drawn(plan: PretrainingPlan, config: TrainConfig) -> dict[str, np.ndarray]:
    samples = plan.in_memory(config, config.samples_per_epoch).epoch(0)
    assert samples.next_events is not None
    return {**vars(samples.tokens), **vars(samples.next_events)}


def test_the_past_ends_where_training_holds_its_last_window_out(planned: PretrainingPlan, shop, cutoff, config) -> None:
    phases = fitting.plan(shop, cutoff, config)
    assert phases.holdout is not None
    assert planned.grounds[0].cutoff == phases.holdout.cutoff < cutoff


def test_nothing_after_the_past_reaches_a_sample(planned: PretrainingPlan, shop: Dataset, cutoff: int, config) -> None:
    until = planned.grounds[0].cutoff
    future = Histories.from_table(scramble_future(shop.histories.to_table(), until, 1))
    other = pretraining.plan([replace(shop, histories=future)], [cutoff], ALL, config)
    ours, theirs = drawn(planned, config), drawn(other, config)
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    # The check would see a difference: with the whole log as the past there is one.
    later = [replace(p, grounds=(replace(p.grounds[0], cutoff=shop.data_through),)) for p in (planned, other)]
    assert any(not np.array_equal(a, b) for a, b in zip(*(drawn(p, config).values() for p in later), strict=True))


def test_the_next_event_is_the_first_after_the_origin_and_censored_at_the_cut(
    planned: PretrainingPlan, shop: Dataset
) -> None:
    ground, rng = planned.grounds[0], np.random.default_rng(0)
    h, clock = shop.histories, shop.clock
    customers = np.arange(len(h))
    origin = clock.day_start(clock.local_day(np.array([ground.cutoff]))[0] - 60)
    following = ground.reader.following(h, customers, np.full(len(h), origin))
    for i in rng.choice(len(h), 60, replace=False):
        times = h.time[h.offsets[i] : h.offsets[i + 1]]
        later = times[(times >= origin) & (times < ground.cutoff)]
        days = (later.min() if len(later) else ground.cutoff) - origin
        assert following.known[i] == (len(later) > 0)
        assert following.wait[i] == int(np.log1p(days / 86_400e6) / np.log1p(1500) * 15)
    assert 0.1 < following.known.mean() < 0.95


def test_every_objective_falls_on_rows_drawn_for_the_purpose(planned: PretrainingPlan, config: TrainConfig) -> None:
    longer = replace(config, epochs=6)
    done = finish(pretraining.train(planned, longer))
    first, last = done.history[0], done.history[-1]
    for name in ("masked", "next_event", "coles", "autoencoder"):
        assert float(last[name]) < float(first[name]), name


def test_a_resumed_run_ends_like_the_undisturbed_one(
    planned: PretrainingPlan, config: TrainConfig, tmp_path: Path
) -> None:
    whole = finish(pretraining.train(planned, config))
    first = next(event for event in pretraining.train(planned, config) if isinstance(event, EpochDone))
    first.save(tmp_path)
    resumed = finish(pretraining.train(planned, config, checkpoint=tmp_path))
    assert [row["epoch"] for row in resumed.history] == [1, 2]
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name


def test_several_shops_share_one_encoder_and_take_equal_parts(shop: Dataset, cutoff: int, config) -> None:
    events = shop.histories
    dear = replace(shop, name="dear", histories=replace(events, amount=events.amount * 50))
    both = pretraining.plan([shop, dear], [cutoff, cutoff], Objectives(), config)
    samples = both.in_memory(config, config.samples_per_epoch).epoch(0)
    assert len(samples) == config.samples_per_epoch
    codes = samples.tokens.codes
    half = samples.tokens.offsets[len(samples) // 2]
    # A basket that is dear in its own shop has the same bins in both, whatever the currency.
    shares = [np.bincount(part[:, 1], minlength=17) / len(part) for part in (codes[:half], codes[half:])]
    assert np.abs(shares[0] - shares[1]).max() < 0.05


def test_training_starts_from_the_encoder_and_refuses_one_that_knows_too_much(
    planned: PretrainingPlan, shop: Dataset, cutoff: int, config: TrainConfig, tmp_path: Path
) -> None:
    done = finish(pretraining.train(planned, replace(config, epochs=1)))
    named = replace(shop, name="simulated")
    backbone = config.model.backbone
    until = planned.grounds[0].cutoff
    transfer.save(tmp_path / "e", backbone, planned.space, done.weights, [SeenDataset("simulated", until)], {})
    tuned = replace(config, model=replace(config.model, backbone=replace(backbone, pretrained=str(tmp_path / "e"))))
    phases = fitting.plan(named, cutoff, tuned)
    for setup in filter(None, (phases.holdout, phases.final)):
        model = setup.model(tuned)
        name = "backbone.model.encoder.layer.0.attention.self.query.weight"
        assert torch.equal(model.state_dict()[name], done.weights[name])
    transfer.save(tmp_path / "e", backbone, planned.space, done.weights, [SeenDataset("simulated", cutoff)], {})
    with pytest.raises(ValueError, match="has seen simulated until 2024-03-31, after 2024-01-02"):
        fitting.plan(named, cutoff, tuned)


def test_shops_on_storage_are_pretrained_on_shard_by_shard(
    shop: Dataset, cutoff: int, config: TrainConfig, shop_histories: pa.Table, tmp_path: Path
) -> None:
    paths = write_shards(shop_histories, tmp_path, 5)
    small = replace(shop, name="small", shards=paths[:1])
    planned = pretraining.plan([replace(shop, shards=paths), small], [cutoff, cutoff], ALL, config)
    source = planned.source(replace(config, samples_per_epoch=10 * WINDOW * config.batch_size))
    assert isinstance(source, ShardPasts)
    read: list[str] = []
    steps = list(replace(source, load=lambda make, pieces: map(make, noted(pieces, read))).steps(config, 0, 1, 0))
    # Every shard is read, and the one of the small shop as often as all of the large one: equal parts.
    assert sorted(read) == sorted([*paths, *paths[:1] * 5])
    assert [step.num_steps for step in steps] == [160] * 160
    assert sum(len(step.batches[0].mask) for step in steps) == 160 * config.batch_size
    done = finish(pretraining.train(planned, replace(config, epochs=4)))
    assert float(done.history[-1]["next_event"]) < float(done.history[0]["next_event"])


def noted(pieces: Iterable[Piece], read: list[str]) -> Iterator[Piece]:
    for piece in pieces:
        read.append(piece.shard)
        yield piece


def test_nothing_after_the_past_is_read_of_a_shard(
    planned: PretrainingPlan, shop: Dataset, config: TrainConfig, shop_histories: pa.Table, tmp_path: Path
) -> None:
    until, drawn = planned.grounds[0].cutoff, []
    for number, table in enumerate((shop_histories, scramble_future(shop_histories, until, 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        ground = replace(planned.grounds[0], dataset=replace(shop, shards=write_shards(table, folder, 1)))
        source = ShardPasts.of([ground], ALL, config)
        samples = source.assemble(Piece(source.shards[0], 200, (0, 1)))
        drawn.append({**vars(samples.tokens), **vars(samples.next_events)})
    for name in drawn[0]:
        assert np.array_equal(drawn[0][name], drawn[1][name]), name
