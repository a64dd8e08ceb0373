"""The interfaces of scoring: every class behind them has all their members, with the same parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clv.forecast.predictor import Predictor
from clv.serve.http.metrics import Metrics
from clv.serve.rollout.canary import CanaryScorer, ShadowComparison, ShadowScorer
from clv.serve.scoring.backend import LiveBackend
from clv.serve.scoring.batching import Batching
from clv.serve.scoring.protocol import Backend, PredictorProtocol, Scorer
from clv.serve.scoring.scorer import BatchedScorer
from tests.serve.conftest import SmallPredictor


def check_members(interface: type, implementation: Any) -> None:
    """The implementation has every member of the interface, each function with its parameters and defaults."""
    members = {name: member for name, member in vars(interface).items() if not name.startswith("_")}
    assert members
    for name, member in members.items():
        found = getattr(implementation, name)
        if inspect.isfunction(member):
            given, wanted = (
                [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]
                for function in (found, member)
            )
            assert given == wanted[1:], name  # a bound method has no self
            assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(member), name


def test_the_predictor_of_a_bundle_and_that_of_the_tests_have_what_serving_calls(
    make_shop_bundle: Callable[..., Path],
) -> None:
    check_members(PredictorProtocol, Predictor(make_shop_bundle()))
    check_members(PredictorProtocol, SmallPredictor())


def test_a_request_may_be_scored_by_the_bundle_a_canary_or_a_shadow() -> None:
    scorer = BatchedScorer(SmallPredictor(), Batching(), Metrics())
    check_members(Scorer, scorer)
    check_members(Scorer, CanaryScorer(scorer, scorer))
    check_members(Scorer, ShadowScorer(scorer, scorer, ShadowComparison()))


def test_a_replica_holds_what_the_routes_call() -> None:
    check_members(Backend, LiveBackend())
