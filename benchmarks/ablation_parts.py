"""Parts replaced for `benchmarks.ablations`: no level, no BTYD model, other odds of being drawn, pretrained starts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clv.btyd.seasonal_btyd import SeasonalBTYD
from clv.data.histories import ranges
from clv.models.inputs.assemble import AssembledRows, Assembler
from clv.models.inputs.batch import Samples
from clv.models.inputs.tokens import TokenArrays
from clv.models.pretraining import transfer
from clv.models.pretraining.pretrainer import Objectives
from clv.train import loop, pretraining
from clv.train.config import TrainConfig
from clv.train.examples.in_memory import RandomOrigins
from clv.train.examples.loader import Whole
from clv.train.fitting import Dataset, Setup

Floats = NDArray[np.float64]


class WithoutFactor(SeasonalBTYD):
    """Totals are those of the BTYD model without its seasonal factor, in training and after it."""

    def actual_factor(self, origin_day: NDArray[np.int32]) -> tuple[Floats, Floats]:
        ones = np.ones((len(origin_day), len(self.horizons)))
        return ones, ones

    def forecast_factor(self, origin_day: int, horizons: Any = None) -> tuple[Floats, Floats, Floats]:
        ones = np.ones(len(horizons or self.horizons))
        return ones, ones, 0 * ones


class WithoutBTYD(Assembler):
    """Everybody starts from the population average, and the features do not hold the BTYD model's curves."""

    def _assemble(self, *arguments: Any) -> AssembledRows:
        found = super()._assemble(*arguments)
        s, curves = found.samples, 3 * len(self.horizons)
        hazard, repeats, value = (np.ascontiguousarray(s.population_average[:, i]) for i in range(3))
        wide = s.wide.copy()
        wide[:, -curves:] = 0.0
        samples = replace(s, base_hazard=hazard, base_repeats=repeats, base_value=value, wide=wide)
        return replace(found, samples=samples)


def without_factor(setup: Setup) -> Setup:
    btyd = WithoutFactor(**vars(setup.assembler.btyd))
    return replace(setup, assembler=replace(setup.assembler, btyd=btyd))


def without_btyd(setup: Setup) -> Setup:
    return replace(setup, assembler=WithoutBTYD(**vars(setup.assembler)))


def buyers(samples: Samples) -> NDArray[np.bool_]:
    """Rows with a purchase in the longest horizon that has fully observed for them."""
    assert samples.orders is not None
    return samples.orders.max(axis=1) > 0


def big_spenders(samples: Samples) -> NDArray[np.bool_]:
    """The tenth of the rows that spends most."""
    assert samples.value is not None
    worth = samples.value.max(axis=1)
    return worth > max(float(np.quantile(worth, 0.9)), 0.0)


@dataclass(frozen=True)
class Resampled(Whole):
    """Rows of a kind `factor` times as often as the others, in as many rows as before."""

    source: RandomOrigins
    kind: Callable[[Samples], NDArray[np.bool_]]
    factor: float

    def epoch(self, epoch: int) -> Samples:
        samples = self.source.epoch(epoch)
        weight = np.where(self.kind(samples), self.factor, 1.0)
        rng = np.random.default_rng((self.source.seed, epoch, 6))
        rows = np.sort(rng.choice(len(samples), len(samples), p=weight / weight.sum()))
        return taken(samples, rows)

    def odds(self) -> float:
        """By how much the odds of a purchase are larger among what is drawn than among what is there."""
        there, drawn = buyers(self.source.epoch(0)).mean(), buyers(self.epoch(0)).mean()
        return float(drawn / (1 - drawn) * (1 - there) / there)


def taken(samples: Samples, rows: NDArray[np.int64]) -> Samples:
    changes = {
        name: getattr(samples, name)[rows]
        for name in (
            "wide",
            "base_hazard",
            "base_repeats",
            "base_value",
            "population_average",
            "value",
            "orders",
            "observed",
        )
    }
    t = samples.tokens
    assert isinstance(t, TokenArrays), "events, not texts, are drawn anew"
    index = ranges(t.offsets[rows], t.offsets[rows + 1])
    return replace(samples, tokens=t.select(index, np.append(0, np.cumsum(t.lengths[rows]))), **changes)


def corrected(p: Floats, odds: float) -> Floats:
    """Probabilities learned where the odds of a purchase were `odds` times as large (Elkan 2001, theorem 2)."""
    return p / (p + (1 - p) * odds)


def pretrained(
    shop: Dataset, setup: Setup, config: TrainConfig, objectives: tuple[str, ...], epochs: int
) -> TrainConfig:
    """`config` with a backbone that learned the objectives on the same past."""
    ground = pretraining.Ground(shop, setup.cutoff, setup.assembler.space)
    planned = pretraining.PretrainingPlan((ground,), setup.assembler.space, Objectives.from_names(*objectives))
    done = loop.finish(pretraining.train(planned, replace(config, epochs=epochs)))
    folder = Path(tempfile.mkdtemp()) / "encoder"
    transfer.save(folder, config.model.backbone, setup.assembler.space, done.weights, [], {})
    backbone = replace(config.model.backbone, pretrained=str(folder))
    return replace(config, model=replace(config.model, backbone=backbone))
