"""The training loop: learning rate, averaged weights, events, checkpoints and resuming."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clv.models.inputs.batch import Samples
from clv.train import loop
from clv.train.config import OptimizerConfig, TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.engines.torch_engine import Engine
from clv.train.examples.in_memory import RandomOrigins
from clv.train.examples.loader import Whole
from clv.train.fitting import Setup
from clv.train.loop import Average, CheckpointSchedule, EpochDone, Position, StepDone, finish, learning_rate


def engine_of(setup: Setup, config: TrainConfig) -> Engine:
    return make_engine(setup.model(config), loop.sum_loss(config, True), config, torch.device("cpu"))


def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine_to_a_twentieth() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10)
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(2.0 * (0.05 + 0.95 / 2))
    assert rates[100] == pytest.approx(0.1)
    assert learning_rate(1_000, 100, config) == pytest.approx(0.1)
    for step in (20, 70):
        angle = math.pi * (step - 10) / 90
        assert rates[step] == pytest.approx(2.0 * (0.05 + 0.95 * (1 + math.cos(angle)) / 2))
    assert learning_rate(0, 1, OptimizerConfig(learning_rate=3.0, warmup=0.0)) == 3.0


def test_the_average_starts_as_a_plain_mean_and_goes_on_exponentially() -> None:
    values = np.random.default_rng(0).normal(size=30)
    average = Average(0.9)
    for value in values:
        average.update({"w": torch.tensor([value], dtype=torch.float32), "n": torch.tensor(3)})
    expected = 0.0
    for count, value in enumerate(values, 1):
        keep = min(0.9, 1 - 1 / count)
        expected = keep * expected + (1 - keep) * value
    assert average.weights["w"].item() == pytest.approx(expected, rel=1e-5)
    assert average.weights["n"].item() == 3
    # Closed form: mean of the first ten, then decay 0.9.
    closed = 0.9**20 * values[:10].mean() + sum(0.1 * 0.9 ** (29 - i) * values[i] for i in range(10, 30))
    assert expected == pytest.approx(closed)


def test_the_average_is_kept_in_full_precision_and_apart_from_the_model() -> None:
    weight = torch.full((4,), 1.0, dtype=torch.bfloat16)
    average = Average(0.99)
    average.update({"w": weight})
    assert average.weights["w"].dtype == torch.float32
    for _ in range(200):
        average.update({"w": torch.full((4,), 1.0078125, dtype=torch.bfloat16)})
    assert 1.0 < average.weights["w"][0].item() < 1.0078125
    weight.fill_(100.0)
    assert average.weights["w"].max() < 2


class Exploding(Whole):
    """A source whose labels are not finite."""

    def __init__(self, source: RandomOrigins) -> None:
        self.source = source

    def epoch(self, epoch: int) -> Samples:
        samples = self.source.epoch(epoch)
        assert samples.value is not None
        return replace(samples, value=np.full_like(samples.value, np.nan))


def test_a_loss_that_is_not_finite_stops_the_run(setup: Setup, source: RandomOrigins, tiny: TrainConfig) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step 1: lower optimizer\.learning_rate"):
        finish(loop.run(engine_of(setup, tiny), Exploding(source), tiny))


def test_an_epoch_yields_its_steps_and_then_its_mean_loss(
    setup: Setup, source: RandomOrigins, tiny: TrainConfig
) -> None:
    *steps, end = until_epoch(1, loop.run(engine_of(setup, tiny), source, tiny))
    assert all(isinstance(event, StepDone) for event in steps)
    assert [event.row["step"] for event in steps] == list(range(1, end.row["step"] + 1))
    assert end.row["loss"] == pytest.approx(np.mean([event.row["loss"] for event in steps]))
    assert 0 <= end.row["waiting"] <= 1
    num_steps = tiny.epochs * (tiny.samples_per_epoch // tiny.batch_size)
    rates = [learning_rate(i, num_steps, tiny.optimizer) for i in range(len(steps))]
    assert [event.row["learning_rate"] for event in steps] == rates


def until_epoch(epoch: int, events: Iterable[Any]) -> list[Any]:
    """The events of a run that is left at the end of an epoch."""
    found = []
    for event in events:
        found.append(event)
        if isinstance(event, EpochDone) and event.row["epoch"] == epoch:
            break
    return found


def losses_of(events: Iterable[Any]) -> list[float]:
    return [event.row["loss"] for event in events if isinstance(event, StepDone)]


def dropping(tiny: TrainConfig) -> TrainConfig:
    """With every kind of randomness on."""
    backbone = replace(tiny.model.backbone, dropout=0.1)
    return replace(tiny, model=replace(tiny.model, backbone=backbone, dropout=0.2), token_dropout=0.2, epochs=3)


@pytest.mark.parametrize("decay", [0.95, 0.0])
def test_a_resumed_run_ends_with_the_weights_of_the_undisturbed_one(
    decay: float, setup: Setup, source: RandomOrigins, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = replace(dropping(tiny), ema_decay=decay)
    whole = list(loop.run(engine_of(setup, config), source, config))
    engine = engine_of(setup, config)
    before = until_epoch(2, loop.run(engine, source, config))
    before[-1].save(tmp_path / "checkpoint")
    torch.manual_seed(12345)  # another process has another state
    fresh = engine_of(setup, replace(config, seed=config.seed + 5))
    start, average = loop.resume(fresh, tmp_path / "checkpoint", config)
    assert start == Position(2)
    assert fresh.step_count == engine.step_count
    after = list(loop.run(fresh, source, config, start=start, average=average))
    assert losses_of(before + after) == losses_of(whole)
    assert_same_result(after, whole)


def assert_same_result(events: list[Any], others: list[Any]) -> None:
    weights, expected = events[-1].result, others[-1].result
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


def test_equal_runs_give_equal_weights(setup: Setup, source: RandomOrigins, tiny: TrainConfig) -> None:
    config = replace(dropping(tiny), epochs=1)

    def runs() -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(2):
            yield finish(loop.run(engine_of(setup, config), source, config))

    first, second = runs()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stop_at", [3, 8, 11])
def test_a_run_saved_within_an_epoch_goes_on_at_the_very_step(
    stop_at: int, setup: Setup, source: RandomOrigins, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = dropping(tiny)
    whole = list(loop.run(engine_of(setup, config), source, config))
    before = []
    for event in loop.run(engine_of(setup, config), source, config):
        before.append(event)
        if isinstance(event, StepDone) and event.row["step"] == stop_at:
            event.save(tmp_path / "checkpoint")
            break
    torch.manual_seed(12345)
    fresh = engine_of(setup, replace(config, seed=config.seed + 5))
    start, average = loop.resume(fresh, tmp_path / "checkpoint", config)
    assert fresh.step_count == stop_at > 0
    after = list(loop.run(fresh, source, config, start=start, average=average))
    assert losses_of(before + after) == losses_of(whole)
    ends = [
        [event.row["loss"] for event in events if isinstance(event, EpochDone)] for events in (before + after, whole)
    ]
    assert ends[0] == ends[1]
    assert_same_result(after, whole)


def test_a_run_is_saved_by_steps_by_time_and_on_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def saved(schedule: CheckpointSchedule) -> list[int]:
        found = []
        for step in range(1, 13):
            now[0] += 1.0
            if schedule.due(step):
                found.append(step)
        return found

    assert saved(CheckpointSchedule()) == []
    assert saved(CheckpointSchedule(steps=5)) == [5, 10]
    assert saved(CheckpointSchedule(seconds=4)) == [4, 8, 12]
    assert saved(CheckpointSchedule(warned=lambda: asked.append(now[0]) or len(asked) == 3)) == [6]
    assert np.diff(asked).tolist() == [2.0] * (len(asked) - 1)


def test_a_run_by_tokens_follows_the_whole_schedule(setup: Setup, source: RandomOrigins, tiny: TrainConfig) -> None:
    config = replace(tiny, batch_tokens=96)
    events = loop.run(engine_of(setup, config), source, config)
    rates = [event.row["learning_rate"] for event in events if isinstance(event, StepDone)]
    assert max(rates) == config.optimizer.learning_rate
    assert rates[-1] == pytest.approx(0.05 * config.optimizer.learning_rate, rel=0.1)


def test_prefetching_changes_no_loss(setup: Setup, source: RandomOrigins, tiny: TrainConfig) -> None:
    found = []
    for depth in (0, 1, 4):
        config = replace(dropping(tiny), prefetch=depth)
        found.append(losses_of(loop.run(engine_of(setup, config), source, config)))
    assert found[0] == found[1] == found[2]


def test_the_average_stays_on_the_device_of_the_weights() -> None:
    average = Average(0.9)
    for _ in range(3):
        # A tensor of this device has no values: any copy to the CPU fails.
        average.update({"w": torch.zeros(3, device="meta")})
    assert average.weights["w"].device.type == "meta"


def test_the_averaged_weights_are_gathered_once_an_epoch_and_once_by_a_finished_run(
    setup: Setup, source: RandomOrigins, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(Engine, "whole", lambda self, live: gathered.append(live) or live)
    config = replace(tiny, epochs=2)
    average = Average(config.ema_decay)
    trained = finish(loop.run(engine_of(setup, config), source, config, average=average))
    assert len(gathered) == 2
    resumed = finish(loop.run(engine_of(setup, config), source, config, start=Position(2), average=average))
    assert len(gathered) == 3
    assert all(torch.equal(trained[name], value) for name, value in resumed.items())
