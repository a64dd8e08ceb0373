"""Fitting at a cut: everything that a bundle holds, from histories known before one instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from clv.btyd.seasonal import Baseline
from clv.data import features
from clv.data.clock import Clock
from clv.data.cutoff import Value, cut
from clv.data.histories import Histories
from clv.models.adapters import methods
from clv.models.inputs.assemble import Assembler, money_scale, origin_grid, typical_curves
from clv.models.inputs.feature_space import FeatureSpace, Items
from clv.models.inputs.text_history import TextSpace
from clv.models.model import CustomerModel
from clv.models.pretraining import transfer
from clv.train.config import TrainConfig
from clv.train.examples.in_memory import RandomOrigins, ShardOrigins
from clv.train.examples.loader import Source
from clv.train.examples.on_storage import Load, load_here

NUM_SPACE_ORIGINS = 4
ENOUGH_HISTORY_DAYS = 90
HISTORY_SHARE = 0.45


@dataclass(frozen=True)
class Shop:
    """A dataset in memory and what its spec says of it.

    shards: files of all its histories, where `histories` holds a random share of the customers; empty: it holds all.
    load: how samples are made of those files.
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
        return int(h.day[seen].min(initial=int(self.clock.day_of(cutoff))))


@dataclass(frozen=True)
class Setup:
    """What is fitted before the network: anchor, level, feature space; and the past origins to train at."""

    assembler: Assembler
    days: NDArray[np.int32]
    cutoff: int

    @property
    def num_matured(self) -> int:
        """For how many horizons, the shortest ones, a training origin has matured before the cut."""
        longest = self.assembler.baseline.cutoff_day - int(self.days.min())
        return sum(horizon <= longest for horizon in self.assembler.horizons)

    def source(self, shop: Shop, config: TrainConfig) -> Source:
        num, seed = config.samples_per_epoch, config.seed
        if shop.shards:
            return ShardOrigins(
                assembler=self.assembler,
                days=self.days,
                cutoff=self.cutoff,
                shards=shop.shards,
                num_samples=num,
                seed=seed,
                load=shop.load,
            )
        return RandomOrigins(self.assembler, shop.histories, self.days, self.cutoff, num, seed)

    def model(self, config: TrainConfig) -> CustomerModel:
        """A fresh model, seeded; pretrained weights where the backbone names some, and adapters beside them."""
        torch.manual_seed(config.seed)
        backbone = config.model.backbone
        model = CustomerModel(config.model.plain, self.assembler.space, len(self.assembler.horizons))
        if backbone.pretrained:
            transfer.warm_start(model, self.assembler.space, backbone, backbone.pretrained)
        if config.model.adapters.method:
            methods.inject(model, config.model.adapters, backbone)
        return model


def prepare(shop: Shop, cutoff: int, config: TrainConfig, primary: int) -> Setup:
    """Fit anchor, level and feature space on what was known before `cutoff` (us), for `primary` days above all."""
    h, clock = shop.histories, shop.clock
    cutoff_day = int(clock.day_of(np.array([cutoff]))[0])
    first_day = shop.first_day_known(cutoff)
    grid = origin_grid(first_day, cutoff_day, config.num_origins, config.min_history_days)
    baseline = Baseline.fit(h, cutoff, shop.horizons, clock, value=shop.value, origin_days=grid)
    days = grid[grid + min(shop.horizons) <= cutoff_day]
    # Origins at which everybody is new teach little about a shop with a past; a short log cannot be choosy.
    needed = min(ENOUGH_HISTORY_DAYS, HISTORY_SHARE * (cutoff_day - primary - first_day))
    days = days[days >= first_day + needed]
    chosen = np.unique(np.linspace(0, len(grid) - 1, NUM_SPACE_ORIGINS).astype(int)) if len(grid) else grid
    origins = [*clock.start_of(grid[chosen]).tolist(), cutoff]
    past = cut(h, np.array(origins), shop.horizons, clock, value=shop.value)
    table = features.frame(past, shop.horizons)
    space = FeatureSpace.fit(past, table, shop.items)
    if config.model.encoder == "text":
        texts = TextSpace.fit(past, shop.items.keys, shop.items.texts, config.model.backbone)
        space = replace(space, text=texts)
    money = money_scale(past)
    at_cut = table[table["origin_day"] == cutoff_day]
    typical = typical_curves(baseline.curves(at_cut), at_cut["has_purchase"].to_numpy(bool), money)
    assembler = Assembler(
        clock=clock,
        value=shop.value,
        horizons=shop.horizons,
        baseline=baseline,
        space=space,
        money=money,
        max_tokens=config.model.backbone.max_tokens,
        typical=typical,
    )
    return Setup(assembler, days, cutoff)


def primary_horizon(horizons: Sequence[int], log_days: int) -> int:
    """The horizon that models are chosen and calibrated by: the longest up to 90 days that fits the log three times."""
    fitting = [h for h in horizons if h <= 90 and 3 * h <= log_days]
    return max(fitting) if fitting else min(horizons)


@dataclass(frozen=True)
class Phases:
    """The two fits of a run: `trial` knows nothing after the calibration origin, which it is judged at; `final` all.

    trial is None where the log is too short to hold an origin out; `notices` say so in plain words.
    """

    trial: Setup | None
    final: Setup
    primary: int  # days
    notices: tuple[str, ...]


def plan(shop: Shop, cutoff: int, config: TrainConfig) -> Phases:
    """Fit anchors, levels and feature spaces of both phases. Raises ValueError for a cut outside the log."""
    clock = shop.clock
    cutoff_day = int(clock.day_of(np.array([cutoff]))[0])
    first_day = shop.first_day_known(cutoff)
    log_days = cutoff_day - first_day
    if log_days < 2:
        raise ValueError(
            f"origin {clock.format(cutoff)} leaves {log_days} days of log before it (it starts on "
            f"{clock.format(int(clock.start_of(first_day)))}); choose a later --origin"
        )
    if cutoff > shop.data_through:
        raise ValueError(f"origin {clock.format(cutoff)} lies after the log ends, {clock.format(shop.data_through)}")
    primary = primary_horizon(shop.horizons, log_days)
    final = prepare(shop, cutoff, config, primary)
    if len(final.days) == 0:
        raise ValueError(
            f"the log before {clock.format(cutoff)} has {log_days} days: too short for a past origin with "
            f"{config.min_history_days} days before it and the shortest horizon, {min(shop.horizons)} days, after it; "
            "choose a later --origin, or prepare with shorter horizons_days"
        )
    notices = [
        f"horizon {h} days: no past origin of the log has matured for it, so its increments follow the BTYD model"
        for h in shop.horizons[final.num_matured :]
    ]
    held_out = cutoff_day - primary
    trial = None
    if held_out - primary - config.min_history_days > first_day:
        trial = prepare(shop, int(clock.start_of(held_out)), config, primary)
        if len(trial.days) == 0:
            trial = None
    if trial is None:
        notices.append(
            f"the log is too short ({log_days} days) to hold an origin out: no calibration, no early stopping; "
            "the model keeps half way to the anchor"
        )
    judged = (trial or final).cutoff
    transfer.check_cut(config.model.backbone.pretrained, shop.name, judged, clock.format(judged))
    if final.assembler.baseline.warning is not None:
        notices.append(f"anchor: {final.assembler.baseline.warning}")
    return Phases(trial, final, primary, tuple(notices))
