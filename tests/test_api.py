"""The Python API on a data frame: the same numbers as the bundle gives anywhere else, and errors in plain words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import clv
from clv.forecast.scores import SCORES
from clv.simulate.small import simulate
from clv.train.config import TrainConfig

NAMES = ("customer_id", "event_time", "order_id", "item_id", "quantity", "amount")
COLUMNS = {name: f"my_{name}" for name in NAMES}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    events = simulate(150, "2022-01-01", "2023-03-31", seed=3).events.to_pandas()
    events = events[events["event_type"] == "purchase"]
    return events.rename(columns=COLUMNS)[list(COLUMNS.values())]


@pytest.fixture(scope="module")
def model(frame: pd.DataFrame) -> clv.Model:
    config = replace(TrainConfig(), epochs=1, samples_per_epoch=256, batch_size=64)
    return clv.fit(frame, COLUMNS, currency="EUR", origin="2022-12-31", config=config)


def test_scores_have_the_columns_of_the_jobs(model: clv.Model, frame: pd.DataFrame) -> None:
    scores = model.predict(frame, as_of="2023-01-15", horizons_days=(30, 90))
    assert list(scores.columns) == SCORES.names
    assert set(scores["horizon_days"]) == {30, 90}
    known = frame[frame["my_event_time"] < "2023-01-15"]["my_customer_id"].nunique()
    assert len(scores) == 2 * known
    assert "EUR" in model.card


def test_the_future_of_the_frame_does_not_move_a_score(model: clv.Model, frame: pd.DataFrame) -> None:
    past = frame[frame["my_event_time"] < "2023-01-15"]
    whole, cut = model.predict(frame, as_of="2023-01-15"), model.predict(past, as_of="2023-01-15")
    pd.testing.assert_frame_equal(whole, cut)


def test_a_saved_model_gives_the_same_scores_and_vectors(model: clv.Model, frame: pd.DataFrame, tmp_path: Path) -> None:
    model.save(tmp_path / "bundle")
    again = clv.load(tmp_path / "bundle")
    pd.testing.assert_frame_equal(again.predict(frame), model.predict(frame))
    vectors = again.embed(frame)
    assert vectors.shape == (frame["my_customer_id"].nunique(), 128)
    assert np.isfinite(vectors.to_numpy()).all()


def test_a_wrong_column_is_named_with_the_likely_one(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"no column 'my_custmer_id' \(did you mean 'my_customer_id'"):
        clv.fit(frame, COLUMNS | {"customer_id": "my_custmer_id"}, currency="EUR")


def test_a_wrong_key_is_named_with_the_likely_one(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"amunt: unknown key \(did you mean 'amount'"):
        clv.fit(frame, {"customer_id": "my_customer_id", "event_time": "my_event_time", "amunt": "my_amount"})


def test_a_frame_of_rejects_is_refused_with_the_reasons(frame: pd.DataFrame) -> None:
    anonymous = frame.assign(my_customer_id=None)
    with pytest.raises(ValueError, match=r"rows rejected .*customer_id is missing"):
        clv.fit(anonymous, COLUMNS, currency="EUR")


def test_an_origin_before_the_cut_is_refused(model: clv.Model, frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="lies before the bundle's cut"):
        model.predict(frame, as_of="2022-06-01")
