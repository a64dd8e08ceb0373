"""Back-testing on Ray: a fit keeps to the one CPU that Ray counts for it."""

from __future__ import annotations

import pytest
import torch

from clv.cluster.backtesting import _single_thread


def test_a_task_keeps_to_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        task = _single_thread(lambda number: (torch.get_num_threads(), number))
        assert task(7) == (1, 7)
    finally:
        torch.set_num_threads(before)
