"""Hyperparameter search: the epochs that the scheduler expects, and the best score of a trial."""

from __future__ import annotations

from clv.cluster import tuning
from clv.train.config import TrainConfig
from clv.train.search import Choice, SearchRange


def test_the_scheduler_expects_the_longest_trial() -> None:
    base = TrainConfig(epochs=5)
    assert tuning._longest({"epochs": Choice((2, 12, 6))}, base) == 12
    assert tuning._longest({"dropout": SearchRange(0.0, 0.5)}, base) == base.epochs


def test_a_trial_counts_by_its_best_epoch_and_one_without_epochs_comes_last() -> None:
    scores = tuning.TuneTrial("a", {}, (0.01, 0.05, 0.02))
    failed = tuning.TuneTrial("b", {}, (), "RuntimeError: loss is nan")
    assert scores.best == 0.05
    assert sorted([failed, scores], key=lambda trial: -trial.best) == [scores, failed]
