import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from clv.data import histories
from clv.data.cutoff import Value
from clv.data.histories import Histories
from clv.evaluate.metrics import auc, purchase_score
from clv.evaluate.panel import Panel
from clv.forecast.adjustment import Adjustment
from clv.forecast.pipeline import forecast_customers
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, Phases, Setup, plan
from clv.train.loop import EpochDone, StepDone, finish
from clv.train.trainer import DEFAULT_BLEND_WEIGHT, PATIENCE, Fitted, load_model, train
from tests.scramble import scramble_future

MakeShop = Callable[..., Dataset]


def fit(shop: Dataset, cutoff: int, config: TrainConfig, **more: Any) -> tuple[Phases, Fitted]:
    phases = plan(shop, cutoff, config)
    return phases, finish(train(shop, phases, config, **more))


@pytest.fixture(scope="module")
def fitted(shop: Dataset, cutoff: int, tiny: TrainConfig) -> tuple[Phases, Fitted]:
    return fit(shop, cutoff, tiny)


def scores(shop: Dataset, setup: Setup, fitted: Fitted, config: TrainConfig) -> dict[str, np.ndarray]:
    """The scores that a predictor would compute at the cut."""
    model = load_model(setup, config, fitted.weights)
    rows, adjusted = forecast_customers(model, setup.assembler, fitted.adjustment, shop.histories, setup.cutoff)
    f = adjusted.forecast
    return {
        "customer": rows.table["customer_id"].to_numpy(),
        "p": f.p_purchase,
        "orders": f.orders,
        "value": f.value,
        "bands": adjusted.quantiles(np.array([0.1, 0.5, 0.9])),
    }


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def assert_same_panels(first: Panel | None, second: Panel | None) -> None:
    assert first is not None
    assert second is not None
    assert np.array_equal(first.y, second.y)
    for name, prediction in first.models().items():
        assert np.array_equal(prediction.value, second.models()[name].value), name


@pytest.mark.parametrize("seed", [0, 1])
def test_scrambling_the_future_changes_not_one_bit(
    seed: int,
    fitted: tuple[Phases, Fitted],
    make_shop: MakeShop,
    shop_histories: pa.Table,
    cutoff: int,
    tiny: TrainConfig,
) -> None:
    scrambled = make_shop(scramble_future(shop_histories, cutoff, seed=seed))
    assert len(scrambled.histories.time) != len(make_shop().histories.time)
    phases, other = fit(scrambled, cutoff, tiny)
    before, expected = fitted
    assert_same_weights(expected.weights, other.weights)
    assert other.adjustment == expected.adjustment
    assert_same_panels(other.panel, expected.panel)
    assert phases.primary == before.primary
    assert phases.notices == before.notices
    first = scores(make_shop(), before.final, expected, tiny)
    second = scores(scrambled, phases.final, other, tiny)
    for name, values in first.items():
        assert np.array_equal(values, second[name]), name


def test_the_trial_knows_nothing_after_its_held_out_origin(
    fitted: tuple[Phases, Fitted], make_shop: MakeShop, shop_histories: pa.Table, cutoff: int, tiny: TrainConfig
) -> None:
    phases, _ = fitted
    assert phases.holdout is not None
    held_out = phases.holdout.cutoff
    clock = phases.holdout.assembler.clock
    assert clock.local_day(cutoff) - clock.local_day(held_out) == phases.primary == 90
    scrambled = plan(make_shop(scramble_future(shop_histories, held_out, seed=4)), cutoff, tiny)
    assert scrambled.holdout is not None
    assert scrambled.holdout.assembler.btyd.to_json() == phases.holdout.assembler.btyd.to_json()
    assert scrambled.holdout.assembler.value_scale == phases.holdout.assembler.value_scale
    first, second = (p.holdout.assembler.space.to_arrays() for p in (phases, scrambled) if p.holdout)
    assert first[0] == second[0]
    assert all(np.array_equal(first[1][name], second[1][name]) for name in first[1])
    assert scrambled.final.assembler.btyd.to_json() != phases.final.assembler.btyd.to_json()


def test_a_run_says_what_it_did(fitted: tuple[Phases, Fitted], tiny: TrainConfig) -> None:
    phases, run = fitted
    assert phases.notices == ()
    holdout = [row for row in run.history if row["phase"] == "holdout"]
    final = [row for row in run.history if row["phase"] == "final"]
    assert [row["epoch"] for row in holdout] == [1, 2]
    best = max(holdout, key=lambda row: float(row["held_out_score"]))
    assert len(final) == best["epoch"]
    assert run.adjustment.blend_value == (best["blend_value"],) * 2
    assert run.adjustment.blend_purchase == (best["blend_purchase"],) * 2
    assert run.panel is not None
    assert (run.panel.origin, run.panel.horizon_days) == ("2024-01-02", 90)
    assert set(run.panel.models()) == {"clv", "btyd", "past_spend", "bgnbd_gg"}
    assert 0.5 < auc(run.panel.orders > 0, purchase_score(run.panel.models()["clv"])) < 1


def test_the_totals_of_value_and_orders_are_the_btyd_models(
    fitted: tuple[Phases, Fitted], shop: Dataset, tiny: TrainConfig
) -> None:
    phases, run = fitted
    found = scores(shop, phases.final, run, tiny)
    rows = phases.final.assembler.assemble(shop.histories, phases.final.cutoff)
    np.testing.assert_allclose(found["value"].sum(0), rows.base.value.sum(0), rtol=0.02)
    np.testing.assert_allclose(found["orders"].sum(0), rows.base.orders.sum(0), rtol=0.02)


def test_a_log_too_short_to_hold_an_origin_out_keeps_half_way_to_the_btyd_model(
    shop: Dataset, tiny: TrainConfig
) -> None:
    phases, run = fit(shop, shop.clock.parse("2023-03-20"), replace(tiny, samples_per_epoch=64))
    assert phases.holdout is None
    long, short, *_ = phases.notices
    assert long == (
        "horizon 90 days: the log fully observes it at no past origin, so its increments follow the BTYD model"
    )
    assert short.startswith("the log is too short (78 days) to hold an origin out: no calibration, no early stopping")
    assert run.adjustment.blend_purchase == run.adjustment.blend_value == (DEFAULT_BLEND_WEIGHT, 0.0) == (0.5, 0.0)
    assert run.panel is None
    assert {row["phase"] for row in run.history} == {"final"}
    assert len(run.history) == tiny.epochs
    found = scores(shop, phases.final, run, tiny)
    base = phases.final.assembler.assemble(shop.histories, phases.final.cutoff).base
    for ours, theirs in ((found["p"], base.p_purchase), (found["orders"], base.orders), (found["value"], base.value)):
        assert np.isfinite(ours).all()
        assert not np.allclose(ours[:, 0], theirs[:, 0], rtol=0.01)
    hazard = -np.log1p(-found["p"])
    for ours, theirs in ((hazard, base.hazard), (found["orders"], base.orders), (found["value"], base.value)):
        ours, theirs = np.diff(ours)[:, 0], np.diff(theirs)[:, 0]
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
        fifths = np.array_split(np.argsort(theirs), 5)
        for fifth in (fifths[0], fifths[-1]):
            assert ours[fifth].sum() == pytest.approx(theirs[fifth].sum(), rel=1e-6)


def test_a_horizon_that_fully_observed_for_the_final_fit_alone_keeps_the_chosen_weight(
    make_shop: MakeShop, cutoff: int, tiny: TrainConfig
) -> None:
    shop = make_shop(horizons=(30, 300))
    phases, run = fit(shop, cutoff, tiny)
    assert phases.holdout is not None
    assert (phases.holdout.num_observed, phases.final.num_observed) == (1, 2)
    assert phases.notices == ()
    best = max((row for row in run.history if row["phase"] == "holdout"), key=lambda row: float(row["held_out_score"]))
    assert run.adjustment.blend_purchase == (best["blend_purchase"],) * 2
    assert run.adjustment.blend_value == (best["blend_value"],) * 2


def test_a_shop_without_prices_learns_purchases(make_shop: MakeShop, cutoff: int, tiny: TrainConfig) -> None:
    value: Value = "none"
    shop = make_shop(value=value)
    phases, run = fit(shop, cutoff, tiny)
    assert phases.final.assembler.value_scale == 1.0
    found = scores(shop, phases.final, run, tiny)
    assert (found["value"] < 0.01).all()
    assert found["p"][:, 1].max() > 0.3
    assert run.panel is not None
    assert auc(run.panel.orders > 0, purchase_score(run.panel.models()["clv"])) > 0.5


def one_customer(table: pa.Table, num_tokens: int | None = None) -> pa.Table:
    counts = [len(times) for times in table["time"].to_pylist()]
    part = table.slice(int(np.argmax(counts)), 1)
    if num_tokens is None:
        return part
    h = Histories.from_table(part)
    buys = np.flatnonzero(h.type == 0)[:num_tokens]
    starts = [h.items[h.item_offsets[i] : h.item_offsets[i + 1]] for i in buys]
    return replace(
        h,
        offsets=np.array([0, len(buys)]),
        item_offsets=np.append(0, np.cumsum([len(s) for s in starts])),
        items=np.concatenate(starts),
        **{name: getattr(h, name)[buys] for name in histories.TOKEN_FIELDS},
    ).to_table()


@pytest.mark.parametrize("num_tokens", [None, 1, 2])
def test_one_customer_alone_is_enough_to_train(
    num_tokens: int | None, make_shop: MakeShop, shop_histories: pa.Table, tiny: TrainConfig
) -> None:
    shop = make_shop(one_customer(shop_histories, num_tokens))
    cutoff = int(shop.clock.day_start(int(shop.histories.day[0]) + 400))
    phases, run = fit(shop, cutoff, replace(tiny, epochs=1))
    found = scores(shop, phases.final, run, tiny)
    assert found["value"].shape == (1, 2)
    for name in ("p", "orders", "value", "bands"):
        assert np.isfinite(found[name]).all(), name


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_killed_after_any_epoch_resumes_to_the_same_end(
    after: int, shop: Dataset, cutoff: int, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = replace(tiny, token_dropout=0.2)
    phases, whole = fit(shop, cutoff, config)
    ends = (event for event in train(shop, phases, config) if isinstance(event, EpochDone))
    for end in islice(ends, after):
        end.save(tmp_path / str(end.row["epoch"]))
    shutil.copytree(tmp_path / str(end.row["epoch"]), tmp_path / "elsewhere")
    resumed = finish(train(shop, phases, config, checkpoint=tmp_path / "elsewhere"))
    assert_same_weights(whole.weights, resumed.weights)
    assert resumed.adjustment == whole.adjustment
    assert [(r["phase"], r["epoch"], r["loss"]) for r in resumed.history] == [
        (r["phase"], r["epoch"], r["loss"]) for r in whole.history
    ]


def test_a_trial_that_had_stopped_early_is_not_taken_up_again(
    shop: Dataset, cutoff: int, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = replace(tiny, epochs=4)
    phases = plan(shop, cutoff, config)
    ends = (event for event in train(shop, phases, config) if isinstance(event, EpochDone))
    next(end for end in ends if end.row["epoch"] == PATIENCE).save(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "progress.pt"
    progress = torch.load(path, weights_only=False)
    torch.save(replace(progress, best_epoch=0), path)  # as if no epoch had been better than what was before
    resumed = finish(train(shop, phases, config, checkpoint=tmp_path / "checkpoint"))
    assert [row["epoch"] for row in resumed.history if row["phase"] == "holdout"] == [1, 2]
    assert [row["epoch"] for row in resumed.history if row["phase"] == "final"] == [1]


def test_a_run_yields_every_step_and_every_epoch(shop: Dataset, cutoff: int, tiny: TrainConfig) -> None:
    *events, last = train(shop, plan(shop, cutoff, tiny), tiny)
    rows = [event.row for event in events if isinstance(event, EpochDone)]
    assert rows == last.result.history
    table = pd.DataFrame([event.row for event in events if isinstance(event, StepDone)])
    assert set(table["phase"]) == {"holdout", "final"}
    for row in rows:
        part = table[(table["phase"] == row["phase"]) & (table["step"] <= row["step"])]
        assert part["step"].tolist() == list(range(1, int(row["step"]) + 1))


def test_an_adjustment_survives_json(fitted: tuple[Phases, Fitted]) -> None:
    adjustment = fitted[1].adjustment
    assert Adjustment.from_json(adjustment.to_json()) == adjustment
