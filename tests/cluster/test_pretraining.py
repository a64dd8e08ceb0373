"""Pretraining on the cluster: the datasets of a run, and the log line of an epoch."""

from __future__ import annotations

from clv.cluster.pretraining import describe_epoch


def test_the_line_of_an_epoch_has_the_loss_of_each_objective() -> None:
    row = {"epoch": 2, "loss": 1.23456, "masked": 0.5, "coles": 0.25, "seconds": 3.4, "waiting": 0.1}
    assert describe_epoch(row) == "pretrain, epoch 2: loss 1.2346 (masked 0.500, coles 0.250), 3 s"
