"""Hyperparameter search: the epochs that the scheduler expects, and the best score of a trial."""

from __future__ import annotations

from clv.cluster import tuning
from clv.train.config import TrainConfig
from clv.train.search import Choice, SearchRange


def test_the_scheduler_expects_the_longest_trial() -> None:
    base = TrainConfig(epochs=5)
    assert tuning._longest({"epochs": Choice((2, 12, 6))}, base) == 12
    assert tuning._longest({"dropout": SearchRange(0.0, 0.5)}, base) == base.epochs


def test_a_trial_counts_by_its_best_epoch_and_one_without_epochs_is_last() -> None:
    scores = tuning.TuneTrial("a", 2, {}, (0.01, 0.05, 0.02))
    failed = tuning.TuneTrial("b", 1, {}, (), "RuntimeError: loss is nan")
    assert scores.best == 0.05
    assert tuning._ranked([failed, scores]) == [scores, failed]


def test_of_equal_trials_the_earliest_is_the_best_in_whatever_order_they_are_found() -> None:
    first, second = (tuning.TuneTrial(name, number, {}, (0.0,)) for name, number in (("z", 1), ("a", 10)))
    assert tuning._ranked([second, first]) == tuning._ranked([first, second]) == [first, second]
