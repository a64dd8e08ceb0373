"""What is fitted before the network, on histories known before a cut: BTYD model, feature space, past origins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from clv.btyd.seasonal_btyd import SeasonalBTYD
from clv.data import features
from clv.data.clock import Clock
from clv.data.cutoff import Value, cut
from clv.data.histories import Histories
from clv.models.adapters import methods
from clv.models.inputs.assemble import Assembler, fit_value_scale, origin_grid, population_average_curves
from clv.models.inputs.feature_space import FeatureSpace, Items
from clv.models.inputs.text_history import TextSpace
from clv.models.model import CustomerModel
from clv.models.pretraining import transfer
from clv.train.config import TrainConfig
from clv.train.examples.in_memory import RandomOrigins, ShardOrigins
from clv.train.examples.loader import ExampleSource
from clv.train.examples.on_storage import Load, load_here

NUM_SPACE_ORIGINS = 4
ENOUGH_HISTORY_DAYS = 90
HISTORY_SHARE = 0.45


@dataclass(frozen=True)
class Dataset:
    """A dataset for training: histories in memory and the settings of its spec.

    shards: files of all histories, where `histories` holds only some of the shards; empty where it holds all of them.
    load: how examples are assembled from those files.
    """

    histories: Histories
    clock: Clock
    value: Value
    horizons: tuple[int, ...]
    items: Items
    data_through: int  # us: the end of the log
    name: str = ""
    shards: tuple[str, ...] = ()
    load: Load = load_here

    @property
    def first_day(self) -> int:
        return int(self.histories.day.min())

    def first_day_known(self, cutoff: int) -> int:
        """Local day of the first event known before `cutoff` (us); that of the cutoff itself where there is none."""
        h = self.histories
        seen = (h.time < cutoff) & (h.known_at < cutoff)
        return int(h.day[seen].min(initial=int(self.clock.local_day(cutoff))))


@dataclass(frozen=True)
class Setup:
    """What one fit needs before the network: BTYD model, feature space, and the past origins to train at.

    days: local days of the training origins. cutoff (us): no event known at or after it is used.
    """

    assembler: Assembler
    days: NDArray[np.int32]
    cutoff: int

    @property
    def num_observed(self) -> int:
        """The number of horizons, from the shortest, that are fully observed at some training origin."""
        longest = self.assembler.btyd.cutoff_day - int(self.days.min())
        return sum(horizon <= longest for horizon in self.assembler.horizons)

    def source(self, dataset: Dataset, config: TrainConfig) -> ExampleSource:
        """Training examples at random past origins, from memory or shard by shard."""
        num, seed = config.samples_per_epoch, config.seed
        if dataset.shards:
            return ShardOrigins(
                assembler=self.assembler,
                days=self.days,
                cutoff=self.cutoff,
                shards=dataset.shards,
                num_samples=num,
                seed=seed,
                load=dataset.load,
            )
        return RandomOrigins(self.assembler, dataset.histories, self.days, self.cutoff, num, seed)

    def model(self, config: TrainConfig) -> CustomerModel:
        """A new model, seeded, with the pretrained weights that the backbone names and with adapters."""
        torch.manual_seed(config.seed)
        backbone = config.model.backbone
        model = CustomerModel(config.model.without_adapters, self.assembler.space, len(self.assembler.horizons))
        if backbone.pretrained:
            transfer.warm_start(model, self.assembler.space, backbone, backbone.pretrained)
        if config.model.adapters.method:
            methods.inject(model, config.model.adapters, backbone)
        return model


def prepare(dataset: Dataset, cutoff: int, config: TrainConfig, primary: int) -> Setup:
    """Fit the BTYD model and the feature space on what was known before `cutoff` (us).

    primary: the horizon in days that the choice of training origins leaves room for.
    """
    h, clock = dataset.histories, dataset.clock
    cutoff_day = int(clock.local_day(np.array([cutoff]))[0])
    first_day = dataset.first_day_known(cutoff)
    grid = origin_grid(first_day, cutoff_day, config.num_origins, config.min_history_days)
    btyd = SeasonalBTYD.fit(h, cutoff, dataset.horizons, clock, value=dataset.value, origin_days=grid)
    days = grid[grid + min(dataset.horizons) <= cutoff_day]
    # Origins at which every customer is new teach little about a shop with a past; a short log has to keep them.
    needed = min(ENOUGH_HISTORY_DAYS, HISTORY_SHARE * (cutoff_day - primary - first_day))
    days = days[days >= first_day + needed]
    chosen = np.unique(np.linspace(0, len(grid) - 1, NUM_SPACE_ORIGINS).astype(int)) if len(grid) else grid
    origins = [*clock.day_start(grid[chosen]).tolist(), cutoff]
    past = cut(h, np.array(origins), dataset.horizons, clock, value=dataset.value)
    table = features.sample_frame(past, dataset.horizons)
    space = FeatureSpace.fit(past, table, dataset.items)
    if config.model.encoder == "text":
        texts = TextSpace.fit(past, dataset.items.keys, dataset.items.texts, config.model.backbone)
        space = replace(space, text=texts)
    value_scale = fit_value_scale(past)
    at_cut = table[table["origin_day"] == cutoff_day]
    population_average = population_average_curves(
        btyd.curves(at_cut), at_cut["has_purchase"].to_numpy(bool), value_scale
    )
    assembler = Assembler(
        clock=clock,
        value=dataset.value,
        horizons=dataset.horizons,
        btyd=btyd,
        space=space,
        value_scale=value_scale,
        max_tokens=config.model.backbone.max_tokens,
        population_average=population_average,
    )
    return Setup(assembler, days, cutoff)


def primary_horizon(horizons: Sequence[int], log_days: int) -> int:
    """The horizon (days) of model choice and calibration: the longest up to 90 days that fits the log three times."""
    fitting = [h for h in horizons if h <= 90 and 3 * h <= log_days]
    return max(fitting) if fitting else min(horizons)


@dataclass(frozen=True)
class Phases:
    """The two fits of a training run.

    holdout: the fit that ends before the calibration origin and is evaluated there; None for a log that is too short to
    hold an origin out. final: the fit on the whole log. primary: horizon (days) of the evaluation. notices: what the
    log does not support, as sentences for the model card.
    """

    holdout: Setup | None
    final: Setup
    primary: int  # days
    notices: tuple[str, ...]


def plan(dataset: Dataset, cutoff: int, config: TrainConfig) -> Phases:
    """Fit what both phases need before the network. Raises ValueError for a cut outside the log or a log too short."""
    clock = dataset.clock
    cutoff_day = int(clock.local_day(np.array([cutoff]))[0])
    first_day = dataset.first_day_known(cutoff)
    log_days = cutoff_day - first_day
    if log_days < 2:
        raise ValueError(
            f"origin {clock.format(cutoff)} leaves {log_days} days of log before it (it starts on "
            f"{clock.format(int(clock.day_start(first_day)))}); choose a later --origin"
        )
    if cutoff > dataset.data_through:
        raise ValueError(f"origin {clock.format(cutoff)} lies after the log ends, {clock.format(dataset.data_through)}")
    primary = primary_horizon(dataset.horizons, log_days)
    final = prepare(dataset, cutoff, config, primary)
    if len(final.days) == 0:
        raise ValueError(
            f"the log before {clock.format(cutoff)} has {log_days} days: too short for a past origin with "
            f"{config.min_history_days} days before it and the shortest horizon ({min(dataset.horizons)} days) after "
            "it; "
            "choose a later --origin, or prepare with shorter horizons_days"
        )
    notices = [
        f"horizon {h} days: the log fully observes it at no past origin, so its increments follow the BTYD model"
        for h in dataset.horizons[final.num_observed :]
    ]
    calibration_day = cutoff_day - primary
    holdout = None
    if calibration_day - primary - config.min_history_days > first_day:
        holdout = prepare(dataset, int(clock.day_start(calibration_day)), config, primary)
        if len(holdout.days) == 0:
            holdout = None
    if holdout is None:
        notices.append(
            f"the log is too short ({log_days} days) to hold an origin out: no calibration, no early stopping; "
            "the model keeps half way to the BTYD model"
        )
    evaluated = (holdout or final).cutoff
    transfer.check_cut(config.model.backbone.pretrained, dataset.name, evaluated, clock.format(evaluated))
    notices += final.assembler.btyd.findings()
    return Phases(holdout, final, primary, tuple(notices))
