import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clv import bundle as bundles
from clv.bundle import Bundle
from clv.data import histories
from clv.data.clock import DAY_US, Clock
from clv.data.cutoff import Value
from clv.data.histories import Histories
from clv.forecast.predictor import Predictor
from clv.forecast.scores import PORTFOLIO, SCORES
from clv.models.config import BackboneConfig, ModelConfig
from clv.models.inputs.feature_space import Items
from clv.simulate import small
from clv.train.config import EngineConfig, TrainConfig
from clv.train.export import to_bundle
from clv.train.fitting import Dataset, plan
from clv.train.loop import finish
from clv.train.trainer import train
from tests.scramble import scramble_future

CLOCK = Clock("Europe/London")
CUT = CLOCK.parse("2024-04-01")
HORIZONS = (30, 90)
VALUES = ["value_median", "value_p10", "value_p90", "value_mean", "clv_mean", "btyd_value_mean"]
NUMBERS = ["p_purchase", "churn_probability", "orders_mean", "aov", *VALUES]


def config() -> TrainConfig:
    backbone = BackboneConfig(width=32, num_layers=1, num_heads=2, intermediate=64, max_tokens=16)
    return TrainConfig(
        model=ModelConfig(backbone=backbone, hidden=32),
        engine=EngineConfig(kind="torch"),
        epochs=2,
        samples_per_epoch=512,
        batch_size=64,
        num_origins=6,
    )


@pytest.fixture(scope="module")
def table() -> pa.Table:
    simulation = small.simulate(200, "2023-01-01", "2024-07-01", seed=3, timezone="Europe/London")
    customers = simulation.customers.rename(columns={"channel": "attr_channel"})
    rng = np.random.default_rng(4)
    customers["attr_income"] = rng.lognormal(10, 1, len(customers))
    customers["attr_income@known_at"] = CUT + rng.integers(-200, 100, len(customers)) * float(DAY_US)
    customers = pa.Table.from_pandas(customers)
    return histories.build(simulation.events, CLOCK, customers)


def build(table: pa.Table, value: Value = "gross", horizons: tuple[int, ...] = HORIZONS) -> Bundle:
    dataset = Dataset(Histories.from_table(table), CLOCK, value, horizons, Items.empty(), CLOCK.parse("2024-07-01"))
    phases = plan(dataset, CUT, config())
    fitted = finish(train(dataset, phases, config()))
    # After so short a training the blend may be the BTYD model alone; here the network has a part in it.
    one = replace(fitted.adjustment, blend_purchase=(0.5,) * len(horizons), blend_value=(0.75,) * len(horizons))
    blend_weights = one.limit_to_observed(phases.final.num_observed)
    facts = {"name": "shop", "currency": "GBP", "timezone": "Europe/London", "value": value}
    facts |= {"horizons": list(horizons), "discount_rate_annual": 0.1}
    return to_bundle(dataset, phases, config(), replace(fitted, adjustment=blend_weights), facts, list(phases.notices))


@pytest.fixture(scope="module")
def bundle(table: pa.Table) -> Bundle:
    return build(table)


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "shop"
    bundles.save(bundle, path)
    return path


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(folder)


def frame(scores: pa.Table) -> pd.DataFrame:
    return scores.to_pandas().set_index(["customer_id", "horizon_days"]).sort_index()


def test_a_predictor_has_the_facts_of_its_bundle(predictor: Predictor, folder: Path) -> None:
    assert predictor.version == bundles.verify(folder)["version"]
    assert predictor.currency == "GBP"
    assert predictor.timezone == "Europe/London"
    assert predictor.horizons == HORIZONS
    assert predictor.cut == predictor.data_through == datetime(2024, 3, 31, 23, tzinfo=UTC)
    assert predictor.clock == CLOCK


def test_scores_have_the_documented_schema(predictor: Predictor, table: pa.Table) -> None:
    scores = predictor.predict(table, predictor.cut)
    assert scores.schema.equals(SCORES)
    known = table["customer_id"].to_pylist()
    assert sorted(set(scores["customer_id"].to_pylist())) == known
    assert len(scores) == 2 * len(known)
    assert set(scores["horizon_days"].to_pylist()) == set(HORIZONS)
    assert set(scores["origin"].to_pylist()) == {predictor.cut}
    assert not any(scores["extrapolated"].to_pylist())
    for name in NUMBERS:
        assert np.isfinite(scores[name].to_numpy()).all(), name


def test_scores_agree_with_each_other(predictor: Predictor, table: pa.Table) -> None:
    s = predictor.predict(table, predictor.cut, (7, 30, 60, 90, 365)).to_pandas()
    assert (s["churn_probability"] == 1 - s["p_purchase"]).all()
    np.testing.assert_allclose(s["aov"] * s["orders_mean"], s["value_mean"])
    assert (s["orders_mean"] >= s["p_purchase"]).all()
    assert s["p_purchase"].between(0, 1).all()
    assert (s["value_p10"] <= s["value_median"]).all()
    assert (s["value_median"] <= s["value_p90"]).all()
    assert (s["value_p90"] > 0).any()
    # No median where a purchase is less likely than not.
    assert (s.loc[s["churn_probability"] > 0.5, "value_median"] == 0).all()
    assert (s["clv_mean"] > 0).all()
    assert s.groupby("customer_id")["clv_mean"].nunique().eq(1).all()


def test_ranks_and_deciles_order_customers_by_value(predictor: Predictor, table: pa.Table) -> None:
    scores = predictor.predict(table, predictor.cut).to_pandas()
    for _, part in scores.groupby("horizon_days"):
        ordered = part.sort_values("value_rank")
        assert ordered["value_rank"].tolist() == list(range(1, len(part) + 1))
        assert (ordered["value_mean"].diff().dropna() <= 0).all()
        assert ordered["value_decile"].is_monotonic_increasing
        assert part["value_decile"].value_counts().between(len(part) // 10, len(part) // 10 + 1).all()


def test_every_score_grows_with_the_horizon(predictor: Predictor, table: pa.Table) -> None:
    asked = (1, 7, 15, 30, 31, 60, 89, 90, 91, 180, 365)
    scores = predictor.predict(table, predictor.cut, asked).to_pandas()
    for name in ("p_purchase", "orders_mean", "value_mean", "value_p10", "value_median", "value_p90"):
        grid = scores.pivot(index="customer_id", columns="horizon_days", values=name)[list(asked)].to_numpy()
        assert (np.diff(grid, axis=1) >= -1e-9 * grid[:, 1:]).all(), name
    mean = scores.groupby("horizon_days")["value_mean"].mean()
    assert (np.diff(mean[list(asked)]) > 0).all()


GROWING = ("p_purchase", "orders_mean", "value_mean", "btyd_value_mean", "value_p10", "value_median", "value_p90")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, 3650), min_size=1, max_size=4), min_size=2, max_size=4))
def test_every_score_grows_with_any_horizon_whatever_the_other_horizons(
    predictor: Predictor, table: pa.Table, requests: list[list[int]]
) -> None:
    """Each request alone, the answers put together: near and far, learned or not."""
    parts = [predictor.predict(table.slice(0, 60), predictor.cut, [*asked]).to_pandas() for asked in [*requests, [90]]]
    scores = pd.concat(parts).drop_duplicates(["customer_id", "horizon_days"])
    for name in GROWING:
        grid = scores.pivot(index="customer_id", columns="horizon_days", values=name).to_numpy()
        assert (np.diff(grid, axis=1) >= -1e-6 * (1e-3 + grid[:, 1:])).all(), name


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 1500), min_size=2, max_size=4, unique=True))
def test_a_portfolio_grows_with_any_horizon(predictor: Predictor, table: pa.Table, asked: list[int]) -> None:
    found = predictor.portfolio(table.slice(0, 60), predictor.cut, asked)
    for name in ("value_mean", "value_p10", "value_median", "value_p90"):
        assert (np.diff(found[name].to_numpy()) >= 0).all(), name


def orders_of(scores: pa.Table) -> pd.DataFrame:
    return scores.to_pandas().pivot(index="customer_id", columns="horizon_days", values="orders_mean")


def btyd_orders(predictor: Predictor, table: pa.Table, horizons: list[int]) -> pd.DataFrame:
    """Orders that the BTYD model expects without season, one column per horizon."""
    rows = predictor._assembler.assemble(Histories.from_table(table), CUT).table
    orders = predictor._assembler.btyd.curves(rows, horizons).orders
    return pd.DataFrame(orders, index=rows["customer_id"].to_numpy(), columns=horizons)


def test_orders_and_their_value_between_learned_horizons_follow_the_btyd_curve(
    predictor: Predictor, table: pa.Table
) -> None:
    scores = predictor.predict(table, predictor.cut, (7, 30, 45, 90))
    ours, theirs = orders_of(scores).sum(), btyd_orders(predictor, table, [30, 45, 90]).sum()
    share, expected = ((o[45] - o[30]) / (o[90] - o[30]) for o in (ours, theirs))
    assert 0.2 < expected < 0.3  # 15 of 60 days
    assert share == pytest.approx(expected, abs=0.02)
    aov = scores.to_pandas().groupby("horizon_days")["value_mean"].sum() / ours
    assert aov[45] == pytest.approx(aov[30], rel=0.1)
    assert aov[45] == pytest.approx(aov[90], rel=0.1)
    assert aov[7] == pytest.approx(aov[30], rel=0.1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 730), min_size=1, max_size=8))
def test_orders_at_any_horizon_lie_in_the_proportion_of_the_btyd_curve(
    predictor: Predictor, table: pa.Table, asked: list[int]
) -> None:
    """Of every customer, within the learned horizons and on to two years, but for orders as rare as their chance."""
    some, knots = table.slice(0, 60), (30, 90, 730)
    days = sorted({*asked, *knots})
    scores = predictor.predict(some, predictor.cut, days)
    p = scores.to_pandas().pivot(index="customer_id", columns="horizon_days", values="p_purchase")
    ours, theirs = orders_of(scores), btyd_orders(predictor, some, days).loc[p.index]
    assert (np.diff(ours, axis=1) >= -1e-9).all()
    ours[0] = theirs[0] = 0.0
    for low, high in zip((0, *knots), knots, strict=False):
        for day in (d for d in days if low < d < high):
            share = (theirs[day] - theirs[low]) / (theirs[high] - theirs[low])
            expected = np.maximum(ours[low] + share * (ours[high] - ours[low]), p[day])
            np.testing.assert_allclose(ours[day], expected, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def young(table: pa.Table) -> Bundle:
    """A bundle with a horizon that is nearly as long as the log, so that no training origin observes it in full."""
    return build(table, horizons=(30, 90, 450))


def test_beyond_the_observed_horizons_every_customer_grows_by_the_btyd_models_increments(
    young: Bundle, table: pa.Table
) -> None:
    assert young.calibration["blend_purchase"] == [0.5, 0.5, 0.0]
    assert young.calibration["blend_value"] == [0.75, 0.75, 0.0]
    predictor = Predictor(young)
    rows = predictor._assembler.assemble(Histories.from_table(table), CUT)
    scores = predictor.predict(table, CUT).to_pandas().assign(hazard=lambda s: -np.log1p(-s["p_purchase"]))
    for name, score in (("hazard", "hazard"), ("orders", "orders_mean"), ("value", "value_mean")):
        curve = pd.DataFrame(
            getattr(rows.base, name), index=rows.table["customer_id"].to_numpy(), columns=(30, 90, 450)
        )
        grid = scores.pivot(index="customer_id", columns="horizon_days", values=score).loc[curve.index]
        assert not np.allclose(grid[90], curve[90], rtol=0.01)  # the model has its say where it has learned
        ours, theirs = (np.asarray(c[450] - c[90]) for c in (grid, curve))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9, err_msg=name)
        fifths = np.array_split(np.argsort(theirs), 5)
        for fifth in (fifths[0], fifths[-1]):
            assert ours[fifth].sum() == pytest.approx(theirs[fifth].sum(), rel=1e-6), name


def test_scores_and_lifetime_value_extrapolate_without_the_ratio_of_an_untrained_horizon(
    young: Bundle, table: pa.Table
) -> None:
    three_years = replace(young, btyd=young.btyd | {"warning": "the purchases show no dropout"})
    ends = [30, 90, 450, 450 + 365, 450 + 2 * 365, 450 + 3 * 365]
    scores = Predictor(three_years).predict(table, CUT, [*ends, 200]).to_pandas()
    ours, btyd = (
        scores.pivot(index="customer_id", columns="horizon_days", values=name)
        for name in ("value_mean", "btyd_value_mean")
    )
    for day in (200, *ends[2:]):
        np.testing.assert_allclose(ours[day] - ours[90], btyd[day] - btyd[90], rtol=1e-6)
    spent = np.diff(
        np.concatenate([ours[[30, 90]], btyd[ends[2:]].add(ours[90] - btyd[90], axis=0)], axis=1), prepend=0
    )
    middle = (np.array([0, *ends[:-1]]) + ends) / 2
    lifetime = scores.groupby("customer_id")["clv_mean"].first()
    np.testing.assert_allclose(lifetime, spent @ 1.1 ** (-middle / 365), rtol=1e-6)


def test_lifetime_value_counts_fewer_years_where_the_log_shows_no_dropout(bundle: Bundle, table: pa.Table) -> None:
    def lifetime(warning: str | None) -> pd.Series:
        one = Predictor(replace(bundle, btyd=bundle.btyd | {"warning": warning}))
        scores = one.predict(table, CUT, (90, 90 + 3 * 365)).to_pandas()
        assert scores.groupby("customer_id")["clv_mean"].nunique().eq(1).all()
        return scores.set_index(["horizon_days", "customer_id"])

    ten, three = lifetime(None), lifetime("the purchases show no dropout")
    assert (three["clv_mean"] < ten["clv_mean"]).all()
    assert (three["clv_mean"] > 0.6 * three.loc[90, "value_mean"].reindex(three.index, level=1)).all()
    # Discounted, so never more than what is spent in those years.
    assert (three.loc[90, "clv_mean"] <= three.loc[90 + 3 * 365, "value_mean"]).all()


def test_horizons_beyond_the_learned_ones_are_marked_as_extrapolated(predictor: Predictor, table: pa.Table) -> None:
    scores = predictor.predict(table, predictor.cut, (45, 90, 91)).to_pandas()
    assert scores.groupby("horizon_days")["extrapolated"].unique().map(list).to_dict() == {
        45: [False],
        90: [False],
        91: [True],
    }


def test_scores_at_a_learned_horizon_do_not_depend_on_the_other_horizons(predictor: Predictor, table: pa.Table) -> None:
    learned = frame(predictor.predict(table, predictor.cut))
    among = frame(predictor.predict(table, predictor.cut, (90, 7, 30, 365, 90)))
    assert sorted(among.index.unique(1)) == [7, 30, 90, 365]
    for name in NUMBERS:
        np.testing.assert_allclose(among.loc[learned.index, name], learned[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_customer_has_the_same_scores_alone_and_in_a_table(predictor: Predictor, table: pa.Table) -> None:
    together = frame(predictor.predict(table, predictor.cut, (30, 60, 90, 180)))
    for i in (0, 7, 50, 99):
        one = table.slice(i, 1)
        alone = frame(predictor.predict(one, predictor.cut, (30, 60, 90, 180)))
        for name in NUMBERS:
            np.testing.assert_allclose(alone[name], together.loc[alone.index, name], rtol=1e-5, atol=1e-7, err_msg=name)
        assert (alone["value_rank"] == 1).all()
        z = predictor.embed(one, predictor.cut)["z"].to_pylist()
        assert len(z) == 1


def test_the_order_of_customers_does_not_matter(predictor: Predictor, table: pa.Table) -> None:
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    first, second = (frame(predictor.predict(t, predictor.cut)) for t in (table, shuffled))
    for name in NUMBERS:
        np.testing.assert_allclose(second[name], first[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_scores_do_not_depend_on_events_after_the_origin(predictor: Predictor, table: pa.Table) -> None:
    origin = CUT + 30 * DAY_US
    scrambled = scramble_future(table, origin, seed=1)
    assert table["attr_income"] != scrambled["attr_income"]
    assert predictor.predict(table, origin).equals(predictor.predict(scrambled, origin))
    assert not predictor.predict(table, CUT + 80 * DAY_US).equals(predictor.predict(scrambled, CUT + 80 * DAY_US))


def test_a_portfolio_has_the_documented_schema_and_the_sum_of_the_scores_as_mean(
    predictor: Predictor, table: pa.Table
) -> None:
    found = predictor.portfolio(table, predictor.cut, (7, 30, 90, 365))
    assert found.schema.equals(PORTFOLIO)
    assert found["horizon_days"].to_pylist() == [7, 30, 90, 365]
    assert set(found["customers"].to_pylist()) == {len(table)}
    scores = predictor.predict(table, predictor.cut, (7, 30, 90, 365)).to_pandas()
    sums_of = scores.groupby("horizon_days")["value_mean"].sum().to_numpy()
    np.testing.assert_allclose(found["value_mean"].to_numpy(), sums_of)
    low, middle, high = (found[name].to_numpy() for name in ("value_p10", "value_median", "value_p90"))
    assert (low < middle).all()
    assert (middle < high).all()
    for values in (low, middle, high, found["value_mean"].to_numpy()):
        assert (np.diff(values) > 0).all()
    assert predictor.portfolio(table, predictor.cut).equals(predictor.portfolio(table, predictor.cut))


def test_the_interval_of_a_portfolio_is_narrower_than_of_customers_but_not_than_the_factor_error(
    bundle: Bundle, table: pa.Table
) -> None:
    def width(factor_error_scale: float) -> float:
        plain = [c | {"factor_error_scale": factor_error_scale} for c in bundle.calibration["calibration"]]
        other = replace(bundle, calibration=bundle.calibration | {"calibration": plain})
        low, _, high = (Predictor(other).portfolio(table, CUT, (90,))[n][0].as_py() for n in names)
        return high - low

    names = ("value_p10", "value_median", "value_p90")
    scores = Predictor(bundle).predict(table, CUT, (90,)).to_pandas()
    assert width(0.0) < 0.3 * (scores["value_p90"] - scores["value_p10"]).sum()
    day = int(CLOCK.local_day(np.array([CUT]))[0])
    error = Predictor(bundle)._assembler.btyd.forecast_factor(day, (90,))[2][0]
    assert error > 0.03
    sigma, mean = 2.0 * error, scores["value_mean"].sum()
    assert width(2.0) > 0.95 * mean * np.exp(-(sigma**2) / 2) * 2 * np.sinh(1.28 * sigma)  # lognormal of that mean
    assert width(0.0) < width(1.0) < width(2.0)


def test_a_portfolio_of_one_customer_has_the_interval_of_the_customer(predictor: Predictor, table: pa.Table) -> None:
    scores = predictor.predict(table, predictor.cut, (90,)).to_pandas().nlargest(5, "value_mean")
    for row in scores.itertuples():
        one = table.slice(table["customer_id"].to_pylist().index(row.customer_id), 1)
        found = predictor.portfolio(one, predictor.cut, (90,)).to_pylist()[0]
        for name in ("value_p10", "value_median", "value_p90", "value_mean"):
            assert found[name] == pytest.approx(getattr(row, name), rel=0.05, abs=0.5), name


def test_a_portfolio_without_customers_has_value_zero(predictor: Predictor, table: pa.Table) -> None:
    rows = predictor.portfolio(table.slice(0, 0), predictor.cut, (30,)).to_pylist()
    assert rows == [dict(zip(PORTFOLIO.names, [30, 0, 0, 0, 0, 0], strict=True))]
    with pytest.raises(ValueError, match="lies before the bundle's cut"):
        predictor.portfolio(table, CUT - 1)


def test_the_embedding_has_one_vector_per_known_customer(predictor: Predictor, table: pa.Table) -> None:
    vectors = predictor.embed(table, predictor.cut)
    assert vectors.schema.field("z").type == pa.list_(pa.float32(), 32)
    assert vectors["customer_id"].to_pylist() == predictor.predict(table, predictor.cut)["customer_id"].to_pylist()[::2]
    matrix = np.array(vectors["z"].to_pylist())
    assert np.isfinite(matrix).all()
    assert len(np.unique(matrix.round(4), axis=0)) > 0.9 * len(matrix)


def test_an_origin_before_the_cut_is_refused(predictor: Predictor, table: pa.Table) -> None:
    with pytest.raises(
        ValueError, match="origin 2024-03-31 lies before the bundle's cut 2024-04-01: the bundle was trained"
    ):
        predictor.predict(table, CLOCK.parse("2024-03-31"))
    with pytest.raises(ValueError, match="lies before the bundle's cut"):
        predictor.embed(table, CUT - 1)


def test_an_origin_long_after_the_data_is_refused(predictor: Predictor, table: pa.Table) -> None:
    last = CUT + 90 * DAY_US
    assert predictor.check_origin(last) == last
    with pytest.raises(ValueError, match=r"lies more than 90 days past the data \(through 2024-04-01\); prepare newer"):
        predictor.check_origin(last + 1)
    assert predictor.check_origin(last + 1, data_through=CUT + 1) == last + 1


def test_an_origin_can_be_a_time_with_or_without_a_zone_or_microseconds(predictor: Predictor, table: pa.Table) -> None:
    one = table.slice(0, 3)
    expected = predictor.predict(one, CLOCK.parse("2024-05-01"))
    for when in (datetime(2024, 4, 30, 23, tzinfo=UTC), datetime(2024, 5, 1), np.int64(CLOCK.parse("2024-05-01"))):
        assert predictor.predict(one, when).equals(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("horizons", [(0,), (-1, 30), (30, 4_000)])
def test_a_horizon_outside_ten_years_is_refused(
    horizons: tuple[int, ...], predictor: Predictor, table: pa.Table
) -> None:
    with pytest.raises(ValueError, match=r"horizons_days \[.*\] must lie between 1 and 3650"):
        predictor.predict(table, predictor.cut, horizons)


def test_customers_without_an_event_before_the_origin_are_absent(predictor: Predictor, table: pa.Table) -> None:
    events = small.simulate(5, "2024-04-10", "2024-07-01", seed=1, timezone="Europe/London").events
    renamed = [f"later {name}" for name in events["customer_id"].to_pylist()]
    place = events.column_names.index("customer_id")
    later = histories.build(events.set_column(place, "customer_id", pa.array(renamed)), CLOCK)
    both = histories.concat([table.drop_columns("attr_channel").slice(0, 20), later])
    assert set(predictor.predict(both, CUT)["customer_id"].to_pylist()) == set(table["customer_id"].to_pylist()[:20])
    for nobody in (table.slice(0, 0), later):
        assert predictor.predict(nobody, CUT).equals(SCORES.empty_table())
        assert len(predictor.embed(nobody, CUT)) == 0


def test_a_bundle_in_memory_predicts_like_the_one_on_disk(
    predictor: Predictor, bundle: Bundle, table: pa.Table
) -> None:
    assert Predictor(bundle).predict(table, predictor.cut).equals(predictor.predict(table, predictor.cut))


def test_a_damaged_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bundle")
    (tmp_path / "bundle" / "vocab.json").write_text("{}")
    with pytest.raises(bundles.BundleError, match=r"vocab\.json differs from its sha256"):
        Predictor(tmp_path / "bundle")


def test_a_dataset_without_prices_is_scored_by_its_purchases(table: pa.Table, tmp_path: Path) -> None:
    bundles.save(build(table, "none"), tmp_path / "bundle")
    scores = Predictor(tmp_path / "bundle").predict(table, CUT).to_pandas()
    assert scores["p_purchase"].max() > 0.3
    assert scores["orders_mean"].max() > 0.3
    assert (scores["value_mean"] < 0.01).all()
