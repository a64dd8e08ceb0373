"""Two bundles on the same customers: totals that change too much, or that are not finite, end a rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clv import bundle as bundles
from clv.data.clock import to_us
from clv.registry import Registry
from clv.serve.rollout.comparison import TotalsCheck, sample_customers
from clv.serve.rollout.controller import RolloutError
from clv.serve.rollout.policy import RolloutPolicy
from clv.serve.store.sqlite import SqliteStore
from ray_jobs import deploy
from tests.log_lines import each_line

MakeBundle = Callable[..., Path]


def multiplied(bundle: Path, folder: Path, factor: float) -> Path:
    """Writes the bundle with the scale of its values multiplied by `factor`."""
    read = bundles.load(bundle)
    scale = [one * factor for one in read.calibration["scale"]]
    bundles.save(replace(read, calibration=read.calibration | {"scale": scale}), folder)
    return folder


@pytest.fixture
def registry(tmp_path: Path, make_shop_bundle: MakeBundle) -> Registry:
    """A registry with one bundle in production, and no replica."""
    made = Registry(tmp_path / "registry")
    made.promote(made.publish(make_shop_bundle()))
    return made


def refuse(registry: Registry, bundle: Path, message: str, **options: Any) -> None:
    """Deploys the bundle, which must end with `message` and leave the registry as it was."""
    before = registry.current()
    given: dict[str, Any] = {"reason": "refit", "policy": RolloutPolicy(deadline_s=0.1), **options}
    with pytest.raises(ValueError, match=message) as ended:
        deploy.run(deploy.Options(registry=registry.root, bundle=bundle, url="http://127.0.0.1:1", **given))
    assert given["reason"] is None or isinstance(ended.value, RolloutError)
    assert (registry.current(), registry.candidate()) == (before, None)
    assert "start candidate" not in [line["act"] for line in registry.log()]


def test_a_bundle_with_a_scale_of_1e30_is_refused_before_any_replica_loads_it(
    registry: Registry, make_shop_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = multiplied(make_shop_bundle(), tmp_path / "absurd", 1e30)
    message = r"total of value_mean over 30 days is .*e\+.* instead of .* a ratio of 1e\+30 outside \[0\.6667, 1\.5\]"
    refuse(registry, bundle, message + r".*--max-total-change above 0\.5, and a --reason .*smoke test")


def test_an_honest_refit_passes_the_comparison(
    registry: Registry, make_shop_bundle: MakeBundle, tmp_path: Path
) -> None:
    refuse(registry, multiplied(make_shop_bundle(), tmp_path / "refit", 1.2), "no replica writes heartbeats")
    wide = RolloutPolicy(deadline_s=0.1, max_total_change=4)
    tripled = multiplied(make_shop_bundle(), tmp_path / "tripled", 3.0)
    refuse(registry, tripled, "a ratio of 3 outside")
    refuse(registry, tripled, "no replica writes heartbeats", policy=wide)


def test_a_bundle_is_compared_on_stored_customers(
    registry: Registry, make_shop_bundle: MakeBundle, tmp_path: Path, shop_histories: pa.Table
) -> None:
    store = SqliteStore(tmp_path / "store", create=True)
    store.put_histories(shop_histories)
    store.close()
    bundle = multiplied(make_shop_bundle(), tmp_path / "absurd", 1e30)
    lines: list[str] = []
    with each_line(lines.append, "clv.serve.rollout.comparison"):
        refuse(registry, bundle, "a ratio of 1e", store=str(tmp_path / "store"))
    assert [line.split(":")[0] for line in lines] == ["customers of the smoke test"] * 2 + ["stored customers"] * 2
    assert "30 days, 300 customers: value_mean " in lines[2]


def test_a_reason_is_needed_where_another_version_is_in_production(
    registry: Registry, make_shop_bundle: MakeBundle
) -> None:
    refuse(registry, make_shop_bundle(1), "is in production: give a --reason to replace it", reason=None)


@pytest.mark.parametrize("column", ["value_mean", "orders_mean", "p_purchase"])
def test_a_number_that_is_not_finite_is_refused_in_either_bundle(
    store: SqliteStore, make_predictor: Any, column: str
) -> None:
    sound, damaged = make_predictor("sound"), make_predictor("damaged")
    predict, samples = damaged.predict, {"stored customers": store.get(["A"])}

    def not_finite(*given: Any) -> pa.Table:
        scores = predict(*given)
        values = np.where(scores["horizon_days"].to_numpy() == 90, np.nan, scores[column].to_numpy())
        return scores.set_column(scores.schema.get_field_index(column), column, pa.array(values, from_pandas=False))

    damaged.predict = not_finite
    as_of, policy = to_us(sound.cut), RolloutPolicy(max_total_change=float("inf"))
    assert TotalsCheck(make_predictor(), samples, as_of).run(sound, policy) is None
    objection = TotalsCheck(damaged, samples, as_of).run(sound, policy)
    assert objection is not None
    assert f"{column} over 90 days" in objection
    assert "is not finite: train the bundle again (stored customers)" in objection
    objection = TotalsCheck(sound, samples, as_of).run(damaged, policy)
    assert objection is not None
    assert "is not finite in production" in objection


def test_bundles_of_other_horizons_are_compared_at_those_of_the_new_one(
    store: SqliteStore, make_predictor: Any
) -> None:
    old, new = make_predictor(), make_predictor()
    lines: list[str] = []
    with each_line(lines.append, "clv.serve.rollout.comparison"):
        for horizons in ((90, 365), (60, 180)):
            new.horizons = horizons
            TotalsCheck(new, {"stored": store.get(["A"])}, to_us(new.cut)).run(old, RolloutPolicy())
    assert [line.split()[1] for line in lines] == ["90", "60", "180"]


def test_a_sample_of_the_store_is_the_same_for_a_seed_and_holds_each_customer_once(
    tmp_path: Path, shop_histories: pa.Table
) -> None:
    store = SqliteStore(tmp_path / "store", create=True)
    store.put_histories(shop_histories)
    store.close()
    drawn, again, other = (
        sample_customers(str(tmp_path / "store"), 50, seed)["customer_id"].to_pylist() for seed in (0, 0, 1)
    )
    assert drawn == again != other
    assert len(set(drawn)) == 50
    assert len(sample_customers(str(tmp_path / "store"))) == 300
